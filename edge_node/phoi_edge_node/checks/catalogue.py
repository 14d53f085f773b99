"""Everything that ``phoi doctor`` can say, in Vietnamese and English.

Codes are stable: scripts read them from ``--json``. Sentences are written for whoever looks after
the machine, who need not know Phoi, and name what to do, and where.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Health(StrEnum):
    """How a check ended."""

    GOOD = "good"
    WARNING = "warning"  # it works, and somebody should look at it
    BAD = "bad"  # it does not work


class Language(StrEnum):
    """In which the doctor speaks."""

    VI = "vi"
    EN = "en"


@dataclass(frozen=True)
class Entry:
    """What is said with one code: in each language what was seen, and what to do."""

    health: Health
    vi: tuple[str, str]
    en: tuple[str, str]

    def texts(self, language: Language) -> tuple[str, str]:
        """What was seen, and what to do."""
        return self.vi if language is Language.VI else self.en


def _good(vi: str, en: str) -> Entry:
    return Entry(Health.GOOD, (vi, ""), (en, ""))


def _warning(vi: tuple[str, str], en: tuple[str, str]) -> Entry:
    return Entry(Health.WARNING, vi, en)


def _bad(vi: tuple[str, str], en: tuple[str, str]) -> Entry:
    return Entry(Health.BAD, vi, en)


def _both(vi: str, en: str) -> Mapping[Language, str]:
    return MappingProxyType({Language.VI: vi, Language.EN: en})


SUBJECTS: Mapping[str, Mapping[Language, str]] = MappingProxyType(
    {
        "settings": _both("tệp cấu hình", "settings"),
        "mode": _both("chế độ", "site mode"),
        "clock": _both("đồng hồ", "clock"),
        "cpu": _both("bộ xử lý", "CPU"),
        "memory": _both("bộ nhớ", "memory"),
        "disk": _both("ổ đĩa", "disk"),
        "data": _both("thư mục dữ liệu", "data folder"),
        "file": _both("tệp", "file"),
        "certificate": _both("chứng thư", "certificate"),
        "node": _both("nút Phoi", "edge node"),
        "service": _both("dịch vụ", "service"),
        "port": _both("cổng", "port"),
        "receiver": _both("cổng nhận DICOM", "DICOM receiver"),
        "archive": _both("PACS", "archive"),
        "query": _both("hỏi PACS", "questions to"),
        "emr": _both("EMR", "EMR"),
        "mlflow": _both("MLflow", "MLflow"),
        "worker": _both("máy suy luận", "inference worker"),
        "model": _both("mô hình", "model"),
        "volumes": _both("thư mục ảnh khối", "volumes folder"),
        "watched": _both("thư mục theo dõi", "watched folder"),
        "quarantine": _both("vùng cách ly", "quarantine"),
        "database": _both("cơ sở dữ liệu", "database"),
        "pauses": _both("tạm dừng", "pauses"),
        "deliveries": _both("gửi kết quả", "deliveries"),
        "reviews": _both("đọc và ký", "reviews"),
        "backup": _both("sao lưu", "backup"),
        "logs": _both("nhật ký", "logs"),
        "check": _both("kiểm tra", "check"),
    }
)

# Its group stays: what the installer makes is root's, and Phoi reads it as a member of phoi.
_CLOSE = _both(
    "Chạy `chmod o= {path}`; nếu tệp là của root: `chgrp phoi {path}` rồi `chmod 640 {path}`.",
    "Run `chmod o= {path}`; where root owns it: `chgrp phoi {path}`, then `chmod 640 {path}`.",
)

CATALOGUE: Mapping[str, Entry] = MappingProxyType(
    {
        # --- the doctor itself
        "check.no_end": _bad(
            ("không xong sau {seconds} giây", "Chạy lại; nếu vẫn vậy, xem mạng tới nơi này."),
            (
                "did not end within {seconds} s",
                "Run it again; if it stays so, look at the network.",
            ),
        ),
        "check.failed": _bad(
            ("chính phép kiểm tra bị lỗi ({kind})", "Đây là lỗi của Phoi: hãy báo lỗi."),
            ("the check itself failed ({kind})", "This is a bug of Phoi: report it."),
        ),
        # --- settings
        "settings.good": _good("đọc được, mọi giá trị hợp lệ", "read, every value can be used"),
        "settings.unusable": _bad(
            ("không dùng được: {reason}", "Sửa dòng này; xem docs/reference/settings.md."),
            ("cannot be used: {reason}", "Correct it there; see docs/reference/settings.md."),
        ),
        "settings.open": _bad(
            (
                "có mật khẩu cơ sở dữ liệu mà người khác trên máy đọc được",
                _CLOSE[Language.VI],
            ),
            ("holds the database's password, and others can read it", _CLOSE[Language.EN]),
        ),
        "mode.shadow": _good(
            "kết quả ở lại trong Phoi; không gửi gì tới PACS hay EMR",
            "results stay inside Phoi; nothing is sent to PACS or EMR",
        ),
        "mode.sending": _good("kết quả được gửi đi", "results are sent out"),
        "mode.no_archive": _bad(
            ("chưa khai báo PACS nào", "Thêm [[archives]] vào cấu hình, hoặc dùng mode shadow."),
            ("no archive is set", "Add [[archives]] to the settings, or use mode shadow."),
        ),
        "mode.no_emr": _bad(
            ("chưa khai báo EMR nào", "Thêm [hl7] hoặc [fhir] vào cấu hình, hoặc dùng mode pacs."),
            ("no EMR is set", "Add [hl7] or [fhir] to the settings, or use mode pacs."),
        ),
        # --- machine
        "clock.good": _good("{now} UTC, múi giờ {zone}", "{now} UTC, time zone {zone}"),
        "clock.impossible": _bad(
            ("ghi ngày {date}, không thể đúng", "Đặt lại giờ: `timedatectl set-ntp true`."),
            ("says {date}, which cannot be", "Set it: `timedatectl set-ntp true`."),
        ),
        "clock.not_synchronised": _warning(
            (
                "không được đồng bộ với máy chủ thời gian",
                "Chạy `timedatectl set-ntp true`, và khai báo máy chủ NTP của bệnh viện.",
            ),
            (
                "is not synchronised with a time server",
                "Run `timedatectl set-ntp true`, and name the hospital's NTP server.",
            ),
        ),
        "clock.skewed": _bad(
            (
                "lệch {seconds} giây so với {peer}",
                "Đồng bộ cả hai máy với cùng máy chủ NTP: `timedatectl set-ntp true`.",
            ),
            (
                "differs by {seconds} s from that of {peer}",
                "Synchronise both with the same NTP server: `timedatectl set-ntp true`.",
            ),
        ),
        "clock.zone": _warning(
            (
                "múi giờ của máy là {zone}, không phải giờ Việt Nam",
                "Nếu máy đặt ở Việt Nam: `timedatectl set-timezone Asia/Ho_Chi_Minh`.",
            ),
            (
                "this machine's time zone is {zone}, not that of Viet Nam",
                "If it stands in Viet Nam: `timedatectl set-timezone Asia/Ho_Chi_Minh`.",
            ),
        ),
        "cpu.good": _good(
            "{cores} lõi; mạng chạy bằng số nguyên 8 bit nếu mô hình có",
            "{cores} cores; networks run in 8-bit integers where the model has them",
        ),
        "cpu.float": _good(
            "{cores} lõi, không có lệnh VNNI: mạng chạy bằng số thực 32 bit, chậm hơn",
            "{cores} cores without VNNI: networks run in 32-bit floats, which takes longer",
        ),
        "cpu.old": _warning(
            (
                "không có lệnh AVX2: mỗi ca phân tích mất rất lâu",
                "Chạy `phoi worker` trên máy có CPU từ năm 2014 trở lại đây.",
            ),
            (
                "has no AVX2: each analysis takes very long",
                "Run `phoi worker` on a machine whose CPU is younger than 2014.",
            ),
        ),
        "cpu.few": _warning(
            (
                "{workers} máy suy luận trên {cores} lõi làm chậm lẫn nhau",
                "Giảm số `phoi worker` trên máy này.",
            ),
            (
                "{workers} workers on {cores} cores slow each other down",
                "Run fewer `phoi worker` on this machine.",
            ),
        ),
        "memory.good": _good("còn {free} MB", "{free} MB available"),
        "memory.short": _warning(
            (
                "còn {free} MB; mỗi máy suy luận cần khoảng {each} MB",
                "Thêm RAM, đóng chương trình khác, hoặc chạy `phoi worker` ở máy khác.",
            ),
            (
                "{free} MB available; each worker takes about {each} MB",
                "Add memory, close other programs, or run `phoi worker` elsewhere.",
            ),
        ),
        "disk.good": _good(
            "còn {free} MB, một lần ghi an toàn mất {each} ms",
            "{free} MB free, a safe write takes {each} ms",
        ),
        "disk.full": _bad(
            (
                "còn {free} MB, cần {least} MB: ảnh bị từ chối",
                "Dọn bớt ở {path}, hoặc chuyển `data` sang ổ lớn hơn.",
            ),
            (
                "{free} MB free, {least} MB needed: images are refused",
                "Free some space at {path}, or move `data` to a larger disk.",
            ),
        ),
        "disk.short": _warning(
            ("còn {free} MB", "Chuẩn bị thêm ổ đĩa: một ca CT chiếm 100-300 MB."),
            ("{free} MB free", "Plan more room: a CT takes 100-300 MB."),
        ),
        "disk.inodes": _bad(
            (
                "chỉ còn chỗ cho {free} tệp: ảnh sẽ không ghi được",
                "Xoá các tệp nhỏ không cần, hoặc định dạng lại ổ với nhiều inode hơn.",
            ),
            (
                "room for {free} files only: images will not be written",
                "Remove small files that nobody needs, or format it with more inodes.",
            ),
        ),
        "disk.read_only": _bad(
            (
                "{path} ở chế độ chỉ đọc",
                "Ổ có thể hỏng: xem `dmesg`; rồi `mount -o remount,rw`.",
            ),
            (
                "{path} is mounted read-only",
                "The disk may be failing: look at `dmesg`; then `mount -o remount,rw`.",
            ),
        ),
        "disk.network": _bad(
            (
                "{path} nằm trên ổ mạng ({kind}), SQLite có thể hỏng ở đó",
                "Chuyển `data` sang ổ trong máy, hoặc dùng PostgreSQL (database_url).",
            ),
            (
                "{path} lies on a network file system ({kind}), where SQLite may be damaged",
                "Move `data` to a disk of this machine, or use PostgreSQL (database_url).",
            ),
        ),
        "disk.slow": _warning(
            ("một lần ghi an toàn mất {each} ms", "Dùng ổ SSD cho `data`."),
            ("a safe write takes {each} ms", "Use an SSD for `data`."),
        ),
        "data.good": _good("ghi được, chỉ chủ của nó đọc được", "writable, for its owner only"),
        "data.not_writable": _bad(
            (
                "không ghi được vào {path}: {reason}",
                "Giao nó cho người dùng chạy Phoi: `chown -R phoi {path}`.",
            ),
            (
                "{path} cannot be written: {reason}",
                "Give it to the user that runs Phoi: `chown -R phoi {path}`.",
            ),
        ),
        "data.other_owner": _warning(
            (
                "của {owner}, còn bạn là {user}: Phoi có thể thấy khác",
                "Chạy lại như Phoi: `sudo -u {owner} phoi doctor`.",
            ),
            (
                "is {owner}'s, and you are {user}: Phoi may see something else",
                "Run this as Phoi does: `sudo -u {owner} phoi doctor`.",
            ),
        ),
        "data.open": _warning(
            (
                "mọi người dùng trên máy đọc được thư mục có dữ liệu bệnh nhân",
                "Chạy `chmod 700 {path}`.",
            ),
            ("every user of this machine can read patients' data", "Run `chmod 700 {path}`."),
        ),
        # --- files that settings name
        "file.good": _good("đọc được", "can be read"),
        "file.missing": _bad(
            ("không có {path}", "Tạo tệp đó, hoặc sửa {setting} trong cấu hình."),
            ("there is no {path}", "Make it, or correct {setting} in the settings."),
        ),
        "file.unreadable": _bad(
            ("không đọc được {path}", "Cho Phoi quyền đọc: `chown phoi {path}`."),
            ("{path} cannot be read", "Let Phoi read it: `chown phoi {path}`."),
        ),
        "file.empty": _bad(
            ("{path} trống", "Ghi khoá bí mật vào đó: một dòng, không có gì khác."),
            ("{path} is empty", "Write the secret into it: one line and nothing else."),
        ),
        "file.open": _bad(
            ("mọi người dùng trên máy đọc được khoá bí mật", _CLOSE[Language.VI]),
            ("every user of this machine can read the secret", _CLOSE[Language.EN]),
        ),
        # --- our certificates
        "certificate.good": _good("hợp lệ đến {until}", "valid until {until}"),
        "certificate.missing": _bad(
            ("không đọc được {path}", "Sửa {setting} trong cấu hình, hoặc `chown phoi {path}`."),
            ("{path} cannot be read", "Correct {setting} in the settings, or `chown phoi {path}`."),
        ),
        "certificate.not_pem": _bad(
            ("{path} không phải tệp PEM đúng loại", "Xin lại tệp PEM từ nơi cấp chứng thư."),
            ("{path} is no PEM file of this kind", "Ask who issued the certificate for PEM files."),
        ),
        "certificate.expired": _bad(
            ("hết hạn từ {until}", "Xin chứng thư mới, thay {path}, khởi động lại Phoi."),
            ("expired on {until}", "Get a new one, replace {path}, start Phoi again."),
        ),
        "certificate.early": _bad(
            ("chỉ có hiệu lực từ {since}", "Xem đồng hồ của máy này, rồi của nơi cấp chứng thư."),
            ("is valid only from {since}", "Look at this machine's clock, then at the issuer's."),
        ),
        "certificate.soon": _warning(
            ("hết hạn sau {days} ngày, ngày {until}", "Xin chứng thư mới ngay, rồi thay {path}."),
            ("expires in {days} days, on {until}", "Ask for a new one now, then replace {path}."),
        ),
        "certificate.key_password": _bad(
            (
                "khoá {path} có mật khẩu, dịch vụ không nhập được",
                "Bỏ mật khẩu: `openssl pkey -in {path} -out {path}.new`, rồi đổi tên.",
            ),
            (
                "the key {path} has a password, which a service cannot type",
                "Take it off: `openssl pkey -in {path} -out {path}.new`, then rename.",
            ),
        ),
        "certificate.key_mismatch": _bad(
            (
                "khoá {path} không thuộc chứng thư này",
                "Đặt đúng cặp chứng thư và khoá được cấp cùng nhau.",
            ),
            (
                "the key {path} belongs to another certificate",
                "Set the certificate and the key that were made together.",
            ),
        ),
        "certificate.key_open": _bad(
            ("mọi người dùng trên máy đọc được khoá", _CLOSE[Language.VI]),
            ("every user of this machine can read its key", _CLOSE[Language.EN]),
        ),
        "certificate.no_names": _warning(
            (
                "không ghi tên máy (subjectAltName): trình duyệt sẽ từ chối",
                "Xin chứng thư có tên mà mọi người gõ vào trình duyệt.",
            ),
            (
                "names no host (subjectAltName): browsers refuse it",
                "Get one with the name that people type into their browser.",
            ),
        ),
        "certificate.other_authority": _bad(
            (
                "không do nơi cấp trong {path} ký",
                "Dùng chứng thư do nơi đó cấp, hoặc đặt đúng tệp của nơi cấp.",
            ),
            (
                "was not issued by the authority in {path}",
                "Use a certificate of that authority, or set the right authority.",
            ),
        ),
        # --- the node
        "node.runs": _good("đang chạy và sẵn sàng", "runs and is ready"),
        "node.stopped": _warning(
            (
                "không chạy",
                "Chạy `systemctl start phoi.target`, hoặc `phoi edge run -s {path}`.",
            ),
            ("does not run", "Run `systemctl start phoi.target`, or `phoi edge run -s {path}`."),
        ),
        "node.not_ready": _bad(
            (
                "đang chạy nhưng chưa sẵn sàng: {reason}",
                "Xem nhật ký; nếu không hết, `systemctl restart phoi-edge`.",
            ),
            (
                "runs, and is not ready: {reason}",
                "Look into the log; if it stays so, `systemctl restart phoi-edge`.",
            ),
        ),
        "service.good": _good("tự chạy khi bật máy", "starts with the machine"),
        "service.disabled": _warning(
            ("sẽ không tự chạy khi bật máy", "Chạy `systemctl enable {unit}`."),
            ("does not start with the machine", "Run `systemctl enable {unit}`."),
        ),
        "service.failed": _bad(
            ("đã dừng vì lỗi", "Xem `journalctl -u {unit} -n 50`, rồi `systemctl restart {unit}`."),
            ("has failed", "See `journalctl -u {unit} -n 50`, then `systemctl restart {unit}`."),
        ),
        "service.shut_out": _bad(
            (
                "{unit} không được phép ghi vào {path}",
                "Chạy `systemctl edit {unit}`: dưới [Service] ghi ReadWritePaths={path}; "
                "rồi `systemctl restart phoi-edge`.",
            ),
            (
                "{unit} may not write to {path}",
                "Run `systemctl edit {unit}`: under [Service] write ReadWritePaths={path}; "
                "then `systemctl restart phoi-edge`.",
            ),
        ),
        "port.open": _good("{address} có trả lời", "{address} answers"),
        "port.free": _good("{address} còn trống cho Phoi", "{address} is free for Phoi"),
        "port.taken": _bad(
            (
                "{address} đang bị chương trình khác dùng ({program})",
                "Dừng chương trình đó, hoặc đổi {setting} trong cấu hình.",
            ),
            (
                "{address} is used by another program ({program})",
                "Stop it, or set {setting} to another port.",
            ),
        ),
        "port.unusable": _bad(
            (
                "không mở được {address}: {reason}",
                "Đổi địa chỉ hoặc cổng trong {setting} (dưới 1024 cần quyền root).",
            ),
            (
                "{address} cannot be opened: {reason}",
                "Choose another address or port in {setting} (below 1024 needs root rights).",
            ),
        ),
        "port.silent": _bad(
            (
                "Phoi đang chạy nhưng {address} không trả lời",
                "Xem nhật ký, rồi `systemctl restart phoi-edge`.",
            ),
            (
                "Phoi runs, and {address} does not answer",
                "Look into the log, then `systemctl restart phoi-edge`.",
            ),
        ),
        "receiver.good": _good("trả lời C-ECHO với AE {ae}", "answers C-ECHO as {ae}"),
        "receiver.no_echo": _bad(
            (
                "không trả lời C-ECHO với AE {ae}",
                "Xem nhật ký của Phoi: dòng `association rejected` ghi lý do.",
            ),
            (
                "does not answer C-ECHO as {ae}",
                "Look into Phoi's log: `association rejected` says why.",
            ),
        ),
        "receiver.local": _bad(
            (
                "chỉ nghe ở {host}: PACS ở máy khác không tới được",
                'Đặt dicom.host = "0.0.0.0" và mở tường lửa cho cổng {port}.',
            ),
            (
                "listens on {host} only: a PACS on another machine cannot reach it",
                'Set dicom.host = "0.0.0.0" and open the firewall for port {port}.',
            ),
        ),
        "receiver.anyone": _warning(
            (
                "bất cứ ai tới được cổng này đều gửi ảnh được",
                "Ghi tên AE của PACS vào dicom.allowed_calling_ae_titles.",
            ),
            (
                "anyone who reaches the port may send",
                "Name your PACS in dicom.allowed_calling_ae_titles.",
            ),
        ),
        "receiver.senders": _good("nhận ảnh từ: {senders}", "takes images from: {senders}"),
        "receiver.not_allowed": _bad(
            (
                "AE {ae} phải gọi lại cho Phoi mà không có trong danh sách được phép",
                "Thêm {ae} vào dicom.allowed_calling_ae_titles.",
            ),
            (
                "AE {ae} has to call Phoi back, and is not allowed to",
                "Add {ae} to dicom.allowed_calling_ae_titles.",
            ),
        ),
        # --- links: whatever is at the other end of a wire
        "link.good": _good("{host}:{port} trả lời", "{host}:{port} answers"),
        "link.closed": _bad(
            (
                "ở {host} không có chương trình nào nghe cổng {port}",
                "Bật nó ở máy kia, hoặc sửa cổng trong {setting}.",
            ),
            (
                "nothing listens on port {port} of {host}",
                "Start it there, or correct the port in {setting}.",
            ),
        ),
        "link.silent": _bad(
            (
                "{host}:{port} không trả lời sau {seconds} giây",
                "Kiểm tra tường lửa giữa hai máy, dây mạng, và địa chỉ trong {setting}.",
            ),
            (
                "no answer from {host}:{port} within {seconds} s",
                "Look at the firewall between, the cable, and the address in {setting}.",
            ),
        ),
        "link.unknown_host": _bad(
            (
                "không có máy tên {host}",
                "Sửa tên trong {setting}, hoặc dùng địa chỉ IP; kiểm tra DNS.",
            ),
            (
                "there is no host {host}",
                "Correct the name in {setting}, or use its IP address; look at DNS.",
            ),
        ),
        "link.no_route": _bad(
            (
                "không có đường mạng tới {host}:{port}",
                "Kiểm tra dây mạng, gateway và địa chỉ trong {setting}.",
            ),
            (
                "there is no way to {host}:{port} in the network",
                "Look at the cable, the gateway, and the address in {setting}.",
            ),
        ),
        "link.refuses": _bad(
            (
                "trả lời và từ chối: {reason}",
                "Nhờ người quản lý nơi nhận cho phép Phoi; lý do nằm trong nhật ký của họ.",
            ),
            (
                "answers, and refuses: {reason}",
                "Ask its owner to let Phoi in; their log says why.",
            ),
        ),
        "link.trouble": _bad(
            ("không dùng được: {reason}", "Kiểm tra {setting}, rồi hỏi người quản lý nơi nhận."),
            ("cannot be used: {reason}", "Look at {setting}, then ask its owner."),
        ),
        "tls.none": _bad(
            (
                "{host}:{port} không nói TLS",
                "Tắt TLS trong {setting}, hoặc dùng cổng TLS của máy kia.",
            ),
            (
                "{host}:{port} does not speak TLS",
                "Switch TLS off in {setting}, or use the other end's TLS port.",
            ),
        ),
        "tls.expired": _bad(
            (
                "chứng thư của {host} đã hết hạn (hoặc đồng hồ máy này sai)",
                "Nhờ người quản lý {host} thay chứng thư.",
            ),
            (
                "the certificate of {host} has expired (or this machine's clock is wrong)",
                "Ask the owner of {host} to renew it.",
            ),
        ),
        "tls.soon": _warning(
            (
                "chứng thư của {host} hết hạn sau {days} ngày",
                "Báo trước cho người quản lý {host}.",
            ),
            ("the certificate of {host} expires in {days} days", "Tell the owner of {host}."),
        ),
        "tls.other_name": _bad(
            (
                "chứng thư ở {host} mang tên khác",
                "Ghi vào {setting} đúng tên có trong chứng thư, hoặc xin chứng thư có tên {host}.",
            ),
            (
                "the certificate at {host} names another host",
                "Write into {setting} the name that it has, or get one that names {host}.",
            ),
        ),
        "tls.unknown_authority": _bad(
            (
                "chứng thư của {host} do nơi cấp mà Phoi không biết ký",
                "Đặt tệp của nơi cấp vào {setting}, hoặc `update-ca-certificates`.",
            ),
            (
                "the certificate of {host} comes from an authority that Phoi does not know",
                "Set the authority's file in {setting}, or `update-ca-certificates`.",
            ),
        ),
        "tls.failed": _bad(
            ("không lập được TLS với {host}: {reason}", "So các thiết đặt TLS ở hai đầu."),
            ("no TLS with {host}: {reason}", "Compare the TLS settings of both ends."),
        ),
        # --- archives
        "archive.good": _good("trả lời C-ECHO", "answers C-ECHO"),
        "archive.called": _bad(
            (
                "không nhận AE đích {called}",
                "Hỏi người quản lý PACS tên AE đúng, ghi vào ae_title của {setting}.",
            ),
            (
                "does not know the called AE title {called}",
                "Ask the PACS for its AE title, and write it into ae_title of {setting}.",
            ),
        ),
        "archive.calling": _bad(
            (
                "không biết AE gọi {calling}",
                "Nhờ người quản lý PACS thêm AE {calling} với địa chỉ máy này, cổng {own_port}.",
            ),
            (
                "does not know the calling AE title {calling}",
                "Ask the PACS to add AE {calling} with this machine's address, port {own_port}.",
            ),
        ),
        "archive.rejects": _bad(
            (
                "từ chối kết nối của {calling}",
                "Nhờ người quản lý PACS xem nhật ký: lý do ở đó.",
            ),
            ("rejects the association of {calling}", "Ask the PACS: its log says why."),
        ),
        "archive.not_dicom": _bad(
            (
                "{host}:{port} trả lời nhưng không phải DICOM",
                "Sửa cổng trong {setting}: cổng DICOM thường là 104 hoặc 11112.",
            ),
            (
                "{host}:{port} answers, and not in DICOM",
                "Correct the port in {setting}: DICOM is usually 104 or 11112.",
            ),
        ),
        "archive.no_report": _warning(
            (
                "không nhận báo cáo SR: máy khác không đọc được kết quả từ ảnh",
                'Thêm "sr" và "seg" vào objects của {setting}, trừ khi PACS không nhận chúng.',
            ),
            (
                "gets no structured report: no system can read a result off pictures",
                'Add "sr" and "seg" to objects of {setting}, unless the PACS takes neither.',
            ),
        ),
        "archive.no_commitment": _bad(
            (
                "không nhận Storage Commitment",
                "Nhờ PACS bật nó cho AE {calling}, hoặc đặt commitment = false.",
            ),
            (
                "does not offer storage commitment",
                "Ask the PACS to allow it for AE {calling}, or set commitment = false.",
            ),
        ),
        "query.good": _good("trả lời nó đang giữ gì", "answers what it holds"),
        "query.refused": _bad(
            (
                "không cho biết nó giữ gì: {reason}",
                "Nhờ PACS cho phép Query/Retrieve (C-FIND hoặc QIDO-RS) cho AE của Phoi.",
            ),
            (
                "does not say what it holds: {reason}",
                "Ask it to allow Query/Retrieve (C-FIND, or QIDO-RS) for Phoi's AE title.",
            ),
        ),
        # --- EMR and MLflow
        "emr.good": _good("{receipt}", "{receipt}"),
        "emr.not_fhir": _bad(
            (
                "{url} trả lời bằng trang khác, không phải FHIR (HTTP {status})",
                "Sửa fhir.base_url: đó có thể là trang đăng nhập hoặc proxy.",
            ),
            (
                "{url} answers, and is no FHIR server (HTTP {status})",
                "Correct fhir.base_url: this may be a log-in page or a proxy.",
            ),
        ),
        "mlflow.good": _good("MLflow {version}", "MLflow {version}"),
        "mlflow.not_mlflow": _bad(
            (
                "{url} trả lời nhưng không phải MLflow (HTTP {status})",
                "Sửa mlflow.tracking_uri: đó có thể là trang đăng nhập hoặc proxy.",
            ),
            (
                "{url} answers, and is no MLflow server (HTTP {status})",
                "Correct mlflow.tracking_uri: this may be a log-in page or a proxy.",
            ),
        ),
        # --- inference
        "worker.good": _good("có {models}", "has {models}"),
        "worker.closed": _bad(
            (
                "không có máy suy luận ở {address}",
                "Chạy `systemctl start phoi.target`, hoặc `phoi worker --listen {address}`.",
            ),
            (
                "no worker at {address}",
                "Run `systemctl start phoi.target`, or `phoi worker --listen {address}`.",
            ),
        ),
        "worker.no_answer": _bad(
            ("{reason}", "Xem nhật ký của `phoi worker`, rồi khởi động lại nó."),
            ("{reason}", "Look into the log of `phoi worker`, then start it again."),
        ),
        "worker.no_model": _bad(
            (
                "không máy suy luận nào có mô hình {model}",
                "Chạy `phoi models init` ở đó, hoặc sửa inference.model.",
            ),
            (
                "no worker has the model {model}",
                "Run `phoi models init` there, or correct inference.model.",
            ),
        ),
        "model.good": _good("đã ký và được tin, {hash}", "signed and trusted, {hash}"),
        "model.none": _bad(
            ("chưa có ở {path}", "Chạy `phoi models init`."),
            ("is not in {path}", "Run `phoi models init`."),
        ),
        "model.unsigned": _bad(
            (
                "không có chữ ký đọc được",
                "Xoá thư mục {path} và cài lại: `phoi models init` hoặc `install`.",
            ),
            (
                "has no signature that can be read",
                "Remove {path} and install it again: `phoi models init`, or `install`.",
            ),
        ),
        "model.altered": _bad(
            (
                "đã bị thay đổi sau khi ký, hoặc hỏng",
                "Không dùng nó: xoá {path} và cài lại; nếu không rõ vì sao, báo người phụ trách.",
            ),
            (
                "was changed after it was signed, or is damaged",
                "Do not use it: remove {path}, install it again; ask how that came about.",
            ),
        ),
        "model.unknown_key": _bad(
            (
                "do khoá mà máy này không tin ký ({key})",
                "Hỏi nơi cấp mô hình khoá công khai, rồi `phoi models trust`.",
            ),
            (
                "is signed with a key that is not trusted here ({key})",
                "Ask who made it for their public key, then `phoi models trust`.",
            ),
        ),
        "model.revoked": _bad(
            (
                "đã bị thu hồi",
                "Cài phiên bản khác; mô hình này không bao giờ chạy nữa.",
            ),
            ("has been revoked", "Install another version; this one never runs again."),
        ),
        "volumes.good": _good("ghi được, còn {free} MB", "writable, {free} MB free"),
        "volumes.unusable": _bad(
            (
                "không ghi được vào {path}: {reason}",
                "Đặt inference.volumes và PHOI_WORKER_VOLUMES tới cùng một thư mục ghi được.",
            ),
            (
                "{path} cannot be written: {reason}",
                "Set inference.volumes and PHOI_WORKER_VOLUMES to the same writable folder.",
            ),
        ),
        "volumes.small": _bad(
            (
                "chỉ còn {free} MB ở {path}, một ca CT cần tới {each} MB",
                "Dọn chỗ, hoặc đặt inference.volumes sang ổ khác.",
            ),
            (
                "{free} MB free at {path}, one CT may take {each} MB",
                "Free some space, or set inference.volumes to another disk.",
            ),
        ),
        # --- other ways in
        "watched.good": _good("đọc và dọn được", "can be read and emptied"),
        "watched.unusable": _bad(
            (
                "không đọc hoặc không xoá được trong {path}",
                "Tạo thư mục và giao cho Phoi: `chown phoi {path}`.",
            ),
            (
                "{path} cannot be read, or not emptied",
                "Make it and give it to Phoi: `chown phoi {path}`.",
            ),
        ),
        "quarantine.empty": _good("trống", "empty"),
        "quarantine.filled": _warning(
            (
                "{number} ảnh bị để riêng: trùng UID hoặc ca của người khác đã nhận trước",
                "Tìm máy gửi: tệp và tên AE của máy gửi ở {path}.",
            ),
            (
                "{number} instances came under UIDs, or for studies, of others received before",
                "Find who sends them: their files, with the sender's AE title, are in {path}.",
            ),
        ),
        # --- what the database remembers
        "database.good": _good("mở được, lược đồ {schema}", "opens, schema {schema}"),
        "database.new": _good("sẽ được tạo ở lần chạy đầu", "will be made at the first start"),
        "database.earlier": _good(
            "lược đồ {schema} của bản trước; sẽ được nâng khi khởi động",
            "schema {schema} of an earlier version; brought forward at the next start",
        ),
        "database.later": _bad(
            (
                "do bản Phoi mới hơn ghi (lược đồ {schema})",
                "Cài lại bản Phoi đó, hoặc phục hồi bản sao lưu của bản này.",
            ),
            (
                "was written by a later version of Phoi (schema {schema})",
                "Install that version, or restore a backup that this one made.",
            ),
        ),
        "database.unusable": _bad(
            (
                "không mở được: {reason}",
                "Kiểm tra database_url, máy chủ PostgreSQL, mật khẩu và quyền của tệp.",
            ),
            (
                "cannot be opened: {reason}",
                "Look at database_url, the PostgreSQL server, its password, the file's rights.",
            ),
        ),
        "pauses.none": _good("không có gì bị dừng", "nothing is stopped"),
        "pauses.some": _good("{target} dừng từ {since}", "{target} stopped since {since}"),
        "pauses.forgotten": _warning(
            (
                "{target} bị {who} dừng từ {since}",
                "Nếu không còn cần, bật lại ở trang Vận hành.",
            ),
            (
                "{target} was stopped by {who} on {since}",
                "If that is no longer needed, resume it on the operations page.",
            ),
        ),
        "deliveries.good": _good("không có gì bị bỏ lại", "nothing is left behind"),
        "deliveries.dead": _bad(
            (
                "{number} tài liệu bị từ chối và không gửi nữa",
                "Xem lý do và gửi lại ở trang Vận hành.",
            ),
            (
                "{number} documents were refused and are no longer sent",
                "See why, and send them again, on the operations page.",
            ),
        ),
        "reviews.good": _good("không có gì chờ quá lâu", "nothing waits for too long"),
        "reviews.waiting": _warning(
            (
                "{number} kết quả chờ ký, cũ nhất đã {days} ngày",
                "Hỏi các bác sĩ điều gì cản trở: không ai ký thì Phoi không giúp được ai.",
            ),
            (
                "{number} results wait for a signature, the oldest for {days} days",
                "Ask the radiologists what is in the way: unsigned, results help nobody.",
            ),
        ),
        "backup.good": _good("lần cuối {at}", "the latest at {at}"),
        "backup.never": _warning(
            ("chưa có lần nào", "Bật: `systemctl enable --now phoi-backup.timer`."),
            ("there was none yet", "Switch on: `systemctl enable --now phoi-backup.timer`."),
        ),
        "backup.old": _warning(
            (
                "lần cuối đã {days} ngày, {at}",
                "Xem `systemctl status phoi-backup.timer`, và ổ sao lưu còn chỗ không.",
            ),
            (
                "the latest is {days} days old, {at}",
                "See `systemctl status phoi-backup.timer`, and the room on the backup disk.",
            ),
        ),
        "logs.file": _good("ở {path}", "in {path}"),
        "logs.journal": _good(
            "ở nhật ký hệ thống: `journalctl -u phoi-edge`",
            "with the service manager: `journalctl -u phoi-edge`",
        ),
        "logs.unusable": _bad(
            (
                "không ghi được vào {path}",
                "Tạo thư mục và giao cho Phoi: `chown phoi`; hoặc bỏ logs.file.",
            ),
            (
                "{path} cannot be written",
                "Make its folder and give it to Phoi: `chown phoi`; or leave out logs.file.",
            ),
        ),
    }
)
