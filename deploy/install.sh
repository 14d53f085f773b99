#!/bin/sh
# Install Phoi on a mini-PC with Debian 12 or 13, or bring an installation up to date.
#
#   sudo deploy/install.sh --site my-hospital
#
# Run it again to upgrade: settings, keys, models and data stay as they are.
# docs/how-to/install-an-edge-node.md tells the whole story.
set -eu

PREFIX=/opt/phoi
SETTINGS=/etc/phoi/edge.toml
STATE=/var/lib/phoi
BACKUPS=/var/backups/phoi
TLS=/etc/phoi/tls
COMMAND=/usr/local/bin/phoi
UNITS=/etc/systemd/system
USER=phoi
LEAST_RAM_MB=7000
LEAST_DISK_MB=20000
SOURCE=$(cd "$(dirname "$0")/.." && pwd)

SITE=
WHEELS=
EXTRA=worker
WORKERS=1
MODE=install
BACKUP=yes

usage() {
    cat <<'TEXT'
usage: install.sh [options]
  --site NAME        of this hospital: small letters, digits and -; asked for if left out
  --wheels DIR       install from the packages in DIR, without the internet
                     (deploy/make-offline-bundle makes them)
  --gpu cuda|openvino   run networks on an NVIDIA GPU, or on Intel's CPU and GPU
  --workers N        inference workers of this machine; 1 is right up to 8 cores
  --no-backup        upgrade without a backup, where none can be made any more
  --check            only look whether this machine is fit; change nothing
  --uninstall        remove programs and services; settings, keys and data stay
TEXT
}

say() { printf '%s\n' "$*"; }
fail() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

read_options() {
    while [ $# -gt 0 ]; do
        case $1 in
        --site) SITE=${2:?--site needs a name}; shift ;;
        --wheels) WHEELS=$(cd "${2:?--wheels needs a folder}" && pwd) || fail "no folder $2"; shift ;;
        --gpu) EXTRA=worker-${2:?--gpu needs cuda or openvino}; shift ;;
        --workers) WORKERS=${2:?--workers needs a number}; shift ;;
        --no-backup) BACKUP=no ;;
        --check) MODE=check ;;
        --uninstall) MODE=uninstall ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; fail "unknown option $1" ;;
        esac
        shift
    done
    case $EXTRA in
    worker | worker-cuda | worker-openvino) ;;
    *) fail "--gpu takes cuda or openvino" ;;
    esac
    case $WORKERS in
    [1-9] | [1-9][0-9]) ;;
    *) fail "--workers takes a number from 1" ;;
    esac
}

# --- is this machine fit? --------------------------------------------------------------------

check_machine() {
    problems=
    look_at_debian
    look_at_python
    look_at_room
    [ -n "$problems" ] || { say "This machine is fit for Phoi."; return; }
    printf 'This machine is not fit yet:\n%s' "$problems" >&2
    exit 1
}

problem() { problems="$problems  - $*
"; }

look_at_debian() {
    # shellcheck source=/dev/null
    [ -r /etc/os-release ] && . /etc/os-release
    case "${ID:-}-${VERSION_ID:-}" in
    debian-12 | debian-13) ;;
    *) problem "it runs ${PRETTY_NAME:-an unknown system}: install Debian 12 or 13" ;;
    esac
    case $(uname -m) in
    x86_64 | aarch64) ;;
    *) problem "its processor is $(uname -m): Phoi needs x86_64 or aarch64" ;;
    esac
}

look_at_python() {
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        problem "Python 3.11 is missing: apt-get install python3"
    python3 -c 'import ensurepip, venv' 2>/dev/null ||
        problem "Python cannot make environments: apt-get install python3-venv"
    command -v openssl >/dev/null 2>&1 || problem "openssl is missing: apt-get install openssl"
    command -v systemctl >/dev/null 2>&1 || problem "systemd is missing: apt-get install systemd"
}

look_at_room() {
    ram=$(awk '/^MemTotal/ { print int($2 / 1000) }' /proc/meminfo)
    [ "$ram" -ge "$LEAST_RAM_MB" ] || problem "it has $ram MB of memory: $LEAST_RAM_MB are needed"
    disk=$(df -Pm /var/lib | awk 'NR == 2 { print $4 }')
    [ "$disk" -ge "$LEAST_DISK_MB" ] ||
        problem "$disk MB are free at /var/lib: $LEAST_DISK_MB are needed"
}

# --- installing ------------------------------------------------------------------------------

install_phoi() {
    [ "$(id -u)" -eq 0 ] || fail "run it as root: sudo $0"
    check_machine
    [ -f "$SETTINGS" ] || ask_for_site
    make_user
    build_programs
    back_up
    stop_services
    put_programs_in_place
    install_units
    write_settings
    make_page_certificate
    "$COMMAND" models init
    start_services
    ask_doctor
    tell_what_is_next
}

ask_for_site() {
    if [ -z "$SITE" ] && [ -t 0 ]; then
        printf 'Name of this hospital (small letters, digits and -): '
        read -r SITE
    fi
    printf '%s' "$SITE" | grep -Eq '^[a-z0-9][a-z0-9-]{0,62}$' ||
        fail "give --site NAME: small letters, digits and -"
}

make_user() {
    id "$USER" >/dev/null 2>&1 ||
        useradd --system --user-group --home-dir "$STATE" --shell /usr/sbin/nologin "$USER"
    install -d -m 0700 -o "$USER" -g "$USER" "$STATE" "$BACKUPS"
    install -d -m 0750 -o root -g "$USER" /etc/phoi "$TLS"
    [ "$EXTRA" != worker-openvino ] || allow_intel_gpu
}

allow_intel_gpu() {
    # /dev/dri/renderD* belongs to this group.
    getent group render >/dev/null || groupadd --system render
    usermod -aG render "$USER"
}

# In a folder of their own: what runs goes on, and is whole, until all of the new is there.
build_programs() {
    say "Making the programs (some minutes)"
    install -d -m 0755 "$PREFIX"
    NEW=$PREFIX/venv-$(date +%Y%m%d%H%M%S)
    python3 -m venv "$NEW"
    extras="[edge,postgresql,$EXTRA]"
    if [ -n "$WHEELS" ]; then
        pip_install --no-index --find-links "$WHEELS" "phoi$extras"
    else
        pip_install "$SOURCE$extras"
    fi
}

pip_install() {
    "$NEW/bin/python" -m pip -q --disable-pip-version-check install \
        -c "$SOURCE/constraints.txt" "$@" && return
    rm -rf "$NEW"
    fail "the packages could not be installed, and nothing was changed: see above"
}

back_up() {
    [ "$BACKUP" = yes ] && [ -x "$COMMAND" ] && [ -f "$SETTINGS" ] || return 0
    say "Making a backup in $BACKUPS"
    "$COMMAND" edge backup "$BACKUPS" && return
    rm -rf "$NEW"
    fail "no backup could be made, and nothing was changed: see above, or give --no-backup"
}

stop_services() {
    [ -d /run/systemd/system ] && [ -e "$UNITS/phoi-edge.service" ] || return 0
    systemctl stop phoi-edge.service 'phoi-worker@*.service'
}

put_programs_in_place() {
    [ -L "$PREFIX/venv" ] || rm -rf "$PREFIX/venv"
    ln -sfn "$NEW" "$PREFIX/venv"
    for folder in "$PREFIX"/venv-*; do
        [ "$folder" = "$NEW" ] || rm -rf "$folder"
    done
    install_command
}

install_command() {
    cat >"$PREFIX/phoi" <<TEXT
#!/bin/sh
# The command phoi as the services run it: the same user, settings, keys and models.
export PHOI_HOME="\${PHOI_HOME:-$STATE/home}" PHOI_EDGE_SETTINGS="\${PHOI_EDGE_SETTINGS:-$SETTINGS}"
[ "\$(id -u)" -ne 0 ] || exec runuser -u $USER -- $PREFIX/venv/bin/phoi "\$@"
exec $PREFIX/venv/bin/phoi "\$@"
TEXT
    chmod 0755 "$PREFIX/phoi"
    ln -sf "$PREFIX/phoi" "$COMMAND"
}

install_units() {
    install -m 0644 "$SOURCE"/deploy/systemd/phoi* "$UNITS/"
}

write_settings() {
    if [ -f "$SETTINGS" ]; then
        say "Settings stay as they are: $SETTINGS"
        return
    fi
    (cd / && "$PREFIX/venv/bin/phoi" edge init /etc/phoi --site "$SITE" --data "$STATE/data" >/dev/null)
    sockets=$(seq -f '"unix:/run/phoi-worker-%g/worker.sock"' -s ', ' "$WORKERS")
    sed -i \
        -e "s|^workers = .*|workers = [$sockets]|" \
        -e "/^\[web\]/,/^\[/ s|^host = .*|host = \"0.0.0.0\"\ntls_certificate = \"$TLS/page.pem\"\ntls_key = \"$TLS/page.key\"|" \
        "$SETTINGS"
    chown root:"$USER" "$SETTINGS"
    chmod 0640 "$SETTINGS"
    say "Wrote $SETTINGS"
}

make_page_certificate() {
    [ -f "$TLS/page.key" ] && return
    name=$(hostname -f 2>/dev/null || hostname)
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 825 \
        -subj "/CN=$name" -addext "subjectAltName=DNS:$name,DNS:localhost" \
        -keyout "$TLS/page.key" -out "$TLS/page.pem" 2>/dev/null
    chown root:"$USER" "$TLS/page.key" "$TLS/page.pem"
    chmod 0640 "$TLS/page.key" "$TLS/page.pem"
    say "Made a certificate for https://$name:8080 that this machine signed itself."
    say "Browsers warn of it: replace $TLS/page.pem and page.key with the hospital's own."
}

start_services() {
    systemctl enable -q phoi.target phoi-edge.service phoi-backup.timer
    for number in $(seq "$WORKERS"); do
        systemctl enable -q "phoi-worker@$number.service"
    done
    if [ ! -d /run/systemd/system ]; then
        say "systemd does not run here: services start with the machine."
        return
    fi
    systemctl daemon-reload
    systemctl restart phoi.target phoi-edge.service phoi-backup.timer
    for number in $(seq "$WORKERS"); do
        systemctl restart "phoi-worker@$number.service"
    done
}

ask_doctor() {
    say "The doctor says:"
    "$COMMAND" doctor --quiet || true
}

tell_what_is_next() {
    cat <<TEXT
Installed $("$COMMAND" --version). Next, as root:
  phoi edge account add YOUR.NAME --name "..."
  set the PACS in $SETTINGS: dicom.host, dicom.allowed_calling_ae_titles, [[archives]]
  systemctl restart phoi-edge && phoi doctor
TEXT
}

uninstall_phoi() {
    [ "$(id -u)" -eq 0 ] || fail "run it as root: sudo $0 --uninstall"
    systemctl disable -q phoi.target phoi-edge.service phoi-backup.timer 2>/dev/null || true
    if [ -d /run/systemd/system ]; then
        systemctl stop phoi.target phoi-edge.service 'phoi-worker@*.service' phoi-backup.timer || true
    fi
    rm -rf "$UNITS"/phoi.target.wants "$UNITS"/phoi-edge.service "$UNITS"/phoi-worker@.service \
        "$UNITS"/phoi-backup.service "$UNITS"/phoi-backup.timer "$UNITS"/phoi.target
    rm -rf "${PREFIX:?}"/venv "$PREFIX"/venv-* "$PREFIX/phoi"
    rm -f "$COMMAND"
    if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
    say "Removed. Settings (/etc/phoi), data and keys ($STATE) and backups ($BACKUPS) are kept."
}

read_options "$@"
case $MODE in
check) check_machine ;;
install) install_phoi ;;
uninstall) uninstall_phoi ;;
esac
