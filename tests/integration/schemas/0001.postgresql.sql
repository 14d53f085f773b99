SELECT pg_catalog.set_config('search_path', '', false);
CREATE FUNCTION public.append_only() RETURNS trigger
    LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$;
CREATE TABLE public.accounts (
    username character varying(64) NOT NULL,
    display_name character varying(128) NOT NULL,
    role character varying(16) NOT NULL,
    password_hash character varying(256) NOT NULL
);
CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.analyses (
    id character varying(64) NOT NULL,
    study_instance_uid character varying(64) NOT NULL,
    revision integer NOT NULL,
    state character varying(16) NOT NULL,
    priority integer NOT NULL,
    model text,
    model_name character varying(128),
    model_version character varying(64),
    attempts integer NOT NULL,
    due_at timestamp without time zone NOT NULL,
    step character varying(32) NOT NULL,
    fraction double precision NOT NULL,
    error text NOT NULL,
    result text,
    created_at timestamp without time zone NOT NULL,
    started_at timestamp without time zone,
    finished_at timestamp without time zone
);
CREATE TABLE public.audit (
    id integer NOT NULL,
    at timestamp without time zone NOT NULL,
    username character varying(64) NOT NULL,
    action character varying(64) NOT NULL,
    study_instance_uid character varying(64),
    detail text NOT NULL
);
CREATE SEQUENCE public.audit_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.audit_id_seq OWNED BY public.audit.id;
CREATE TABLE public.deliveries (
    id integer NOT NULL,
    document_id integer NOT NULL,
    study_instance_uid character varying(64),
    destination character varying(32) NOT NULL,
    state character varying(16) NOT NULL,
    attempts integer NOT NULL,
    failed_tries integer NOT NULL,
    due_at timestamp without time zone NOT NULL,
    last_error text NOT NULL,
    created_at timestamp without time zone NOT NULL,
    updated_at timestamp without time zone NOT NULL
);
CREATE SEQUENCE public.deliveries_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.deliveries_id_seq OWNED BY public.deliveries.id;
CREATE TABLE public.dispositions (
    id integer NOT NULL,
    analysis_id character varying(64) NOT NULL,
    undoes integer,
    reviewer character varying(64) NOT NULL,
    at timestamp without time zone NOT NULL,
    disposition text NOT NULL
);
CREATE SEQUENCE public.dispositions_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.dispositions_id_seq OWNED BY public.dispositions.id;
CREATE TABLE public.documents (
    id integer NOT NULL,
    analysis_id character varying(64),
    study_instance_uid character varying(64),
    revision integer NOT NULL,
    kind character varying(8) NOT NULL,
    identity character varying(128) NOT NULL,
    status character varying(16) NOT NULL,
    content bytea NOT NULL,
    created_at timestamp without time zone NOT NULL
);
CREATE SEQUENCE public.documents_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.documents_id_seq OWNED BY public.documents.id;
CREATE TABLE public.facts (
    key character varying(128) NOT NULL,
    value text NOT NULL
);
CREATE TABLE public.instances (
    sop_instance_uid character varying(64) NOT NULL,
    study_instance_uid character varying(64) NOT NULL,
    series_instance_uid character varying(64) NOT NULL,
    sop_class_uid character varying(64) NOT NULL,
    transfer_syntax_uid character varying(64) NOT NULL,
    path text NOT NULL,
    sha256 character varying(64) NOT NULL,
    size bigint NOT NULL,
    modality character varying(16) NOT NULL,
    calling_ae_title character varying(16) NOT NULL,
    received_at timestamp without time zone NOT NULL
);
CREATE TABLE public.pauses (
    target character varying(160) NOT NULL,
    username character varying(64) NOT NULL,
    at timestamp without time zone NOT NULL
);
CREATE TABLE public.problems (
    id integer NOT NULL,
    at timestamp without time zone NOT NULL,
    username character varying(64) NOT NULL,
    text text NOT NULL
);
CREATE SEQUENCE public.problems_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.problems_id_seq OWNED BY public.problems.id;
CREATE TABLE public.reviews (
    analysis_id character varying(64) NOT NULL,
    state character varying(16) NOT NULL,
    signed text,
    signed_at timestamp without time zone
);
CREATE TABLE public.studies (
    study_instance_uid character varying(64) NOT NULL,
    state character varying(16) NOT NULL,
    header text NOT NULL,
    first_received_at timestamp without time zone NOT NULL,
    last_received_at timestamp without time zone NOT NULL
);
ALTER TABLE ONLY public.audit ALTER COLUMN id SET DEFAULT nextval('public.audit_id_seq'::regclass);
ALTER TABLE ONLY public.deliveries ALTER COLUMN id SET DEFAULT nextval('public.deliveries_id_seq'::regclass);
ALTER TABLE ONLY public.dispositions ALTER COLUMN id SET DEFAULT nextval('public.dispositions_id_seq'::regclass);
ALTER TABLE ONLY public.documents ALTER COLUMN id SET DEFAULT nextval('public.documents_id_seq'::regclass);
ALTER TABLE ONLY public.problems ALTER COLUMN id SET DEFAULT nextval('public.problems_id_seq'::regclass);
INSERT INTO public.accounts VALUES ('bs.an', 'BS. An', 'reviewer', '$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA');
INSERT INTO public.alembic_version VALUES ('0001');
INSERT INTO public.analyses VALUES ('506c96b0227e447eb0440cceb9fa66ae', '1.1', 1, 'succeeded', 2, '{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}', 'phoi-lung-nodule', '1.0.0', 0, '2026-01-02 03:04:07', '', 1, '', '{"identity": {"study_instance_uid": "1.1", "series_instance_uid": "1.1.9", "input_digest": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "model": {"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}, "revision": 1}, "outcome": "positive", "nodules": [{"number": 1, "tracking_uid": "2.25.1", "finding": {"center_lps_mm": [56.0, 86.0, -116.0], "probability": 0.93, "long_axis_mm": 14.0, "short_axis_mm": 10.0, "mean_diameter_mm": 12.0, "volume_mm3": 900.0, "attenuation": "solid", "solid_diameter_mm": null, "mean_hu": 31.0, "side": "left", "lobe": null, "long_axis_lps_mm": [[49.0, 86.0, -116.0], [63.0, 86.0, -116.0]], "short_axis_lps_mm": [[56.0, 81.0, -116.0], [56.0, 91.0, -116.0]], "mask": {"offset": [1, 2, 3], "shape": [2, 3, 4], "bits": "////"}}, "size_class": {"lung_rads": "4A", "fleischner": ">8 mm", "basis": "mean_diameter"}}], "suggested_priority": "urgent", "coverage": {"apex": true, "base": true, "volume_ml": 4200.0}, "reason": null, "detail": "", "series_reason": "the only series", "analysed_at": "2026-01-02T03:04:05+00:00", "timing_s": {}, "passed_over": {}, "runtime": ""}', '2026-01-02 03:04:07', '2026-01-02 03:04:09', '2026-01-02 03:04:16');
INSERT INTO public.analyses VALUES ('3f45469da57a4d3dacd0a5728f3d24ca', '1.2', 1, 'succeeded', 2, '{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}', 'phoi-lung-nodule', '1.0.0', 0, '2026-01-02 03:05:24', '', 1, '', '{"identity": {"study_instance_uid": "1.2", "series_instance_uid": "1.2.9", "input_digest": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "model": {"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}, "revision": 1}, "outcome": "positive", "nodules": [{"number": 1, "tracking_uid": "2.25.1", "finding": {"center_lps_mm": [56.0, 86.0, -116.0], "probability": 0.93, "long_axis_mm": 14.0, "short_axis_mm": 10.0, "mean_diameter_mm": 12.0, "volume_mm3": 900.0, "attenuation": "solid", "solid_diameter_mm": null, "mean_hu": 31.0, "side": "left", "lobe": null, "long_axis_lps_mm": [[49.0, 86.0, -116.0], [63.0, 86.0, -116.0]], "short_axis_lps_mm": [[56.0, 81.0, -116.0], [56.0, 91.0, -116.0]], "mask": {"offset": [1, 2, 3], "shape": [2, 3, 4], "bits": "////"}}, "size_class": {"lung_rads": "4A", "fleischner": ">8 mm", "basis": "mean_diameter"}}], "suggested_priority": "urgent", "coverage": {"apex": true, "base": true, "volume_ml": 4200.0}, "reason": null, "detail": "", "series_reason": "the only series", "analysed_at": "2026-01-02T03:04:05+00:00", "timing_s": {}, "passed_over": {}, "runtime": ""}', '2026-01-02 03:05:24', '2026-01-02 03:05:26', '2026-01-02 03:05:33');
INSERT INTO public.analyses VALUES ('34935e1c72524b6b9c9e729edd072123', '1.3', 1, 'superseded', 2, '{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}', 'phoi-lung-nodule', '1.0.0', 0, '2026-01-02 03:05:37', '', 1, '', '{"identity": {"study_instance_uid": "1.3", "series_instance_uid": "1.3.9", "input_digest": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "model": {"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}, "revision": 1}, "outcome": "positive", "nodules": [{"number": 1, "tracking_uid": "2.25.1", "finding": {"center_lps_mm": [56.0, 86.0, -116.0], "probability": 0.93, "long_axis_mm": 14.0, "short_axis_mm": 10.0, "mean_diameter_mm": 12.0, "volume_mm3": 900.0, "attenuation": "solid", "solid_diameter_mm": null, "mean_hu": 31.0, "side": "left", "lobe": null, "long_axis_lps_mm": [[49.0, 86.0, -116.0], [63.0, 86.0, -116.0]], "short_axis_lps_mm": [[56.0, 81.0, -116.0], [56.0, 91.0, -116.0]], "mask": {"offset": [1, 2, 3], "shape": [2, 3, 4], "bits": "////"}}, "size_class": {"lung_rads": "4A", "fleischner": ">8 mm", "basis": "mean_diameter"}}], "suggested_priority": "urgent", "coverage": {"apex": true, "base": true, "volume_ml": 4200.0}, "reason": null, "detail": "", "series_reason": "the only series", "analysed_at": "2026-01-02T03:04:05+00:00", "timing_s": {}, "passed_over": {}, "runtime": ""}', '2026-01-02 03:05:37', '2026-01-02 03:05:39', '2026-01-02 03:05:46');
INSERT INTO public.analyses VALUES ('d0f541aca5994be18a96dc0b33360c19', '1.3', 2, 'queued', 1, NULL, NULL, NULL, 0, '2026-01-02 03:05:49', '', 0, '', NULL, '2026-01-02 03:05:49', NULL, NULL);
INSERT INTO public.analyses VALUES ('7ebea547fd604040988d28fbf6bb69b5', '1.5', 1, 'running', 0, '{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}', 'phoi-lung-nodule', '1.0.0', 0, '2026-01-02 03:05:52', '', 0, '', NULL, '2026-01-02 03:05:52', '2026-01-02 03:05:52', NULL);
INSERT INTO public.analyses VALUES ('3bc0ffc297a3436d9517b5475185af91', '1.4', 1, 'queued', 2, NULL, NULL, NULL, 0, '2026-01-02 03:05:54', '', 0, '', NULL, '2026-01-02 03:05:54', NULL, NULL);
INSERT INTO public.audit VALUES (1, '2026-01-02 03:04:18', 'bs.an', 'decide', '1.1', 'rejected');
INSERT INTO public.audit VALUES (2, '2026-01-02 03:04:21', 'bs.an', 'undo', '1.1', '');
INSERT INTO public.audit VALUES (3, '2026-01-02 03:04:21', 'bs.an', 'decide', '1.1', 'accepted');
INSERT INTO public.audit VALUES (4, '2026-01-02 03:05:21', 'bs.an', 'sign', '1.1', '');
INSERT INTO public.audit VALUES (5, '2026-01-02 03:05:55', 'bs.an', 'pause', NULL, 'destination:pacs');
INSERT INTO public.audit VALUES (6, '2026-01-02 03:05:55', 'bs.an', 'report_problem', NULL, '');
INSERT INTO public.deliveries VALUES (1, 1, '1.1', 'pacs', 'delivered', 1, 0, '2026-01-02 03:04:46', '', '2026-01-02 03:04:16', '2026-01-02 03:04:16');
INSERT INTO public.deliveries VALUES (2, 2, '1.1', 'pacs', 'delivered', 1, 0, '2026-01-02 03:04:47', '', '2026-01-02 03:04:16', '2026-01-02 03:04:17');
INSERT INTO public.deliveries VALUES (3, 3, '1.1', 'pacs', 'delivered', 1, 0, '2026-01-02 03:05:51', '', '2026-01-02 03:05:21', '2026-01-02 03:05:21');
INSERT INTO public.deliveries VALUES (4, 4, '1.2', 'pacs', 'dead', 1, 1, '2026-01-02 03:06:03', 'no room', '2026-01-02 03:05:33', '2026-01-02 03:05:33');
INSERT INTO public.deliveries VALUES (5, 5, '1.2', 'pacs', 'pending', 1, 1, '2026-01-02 03:06:04', 'no route', '2026-01-02 03:05:33', '2026-01-02 03:05:34');
INSERT INTO public.dispositions VALUES (1, '506c96b0227e447eb0440cceb9fa66ae', NULL, 'bs.an', '2026-01-02 03:04:18', '{"tracking_uid": "2.25.1", "verdict": "rejected", "reviewer": "bs.an", "decided_at": "2026-01-02T03:04:18+00:00", "reason": "vessel", "correction": {"center_lps_mm": null, "mean_diameter_mm": null}}');
INSERT INTO public.dispositions VALUES (2, '506c96b0227e447eb0440cceb9fa66ae', 1, 'bs.an', '2026-01-02 03:04:21', '{"tracking_uid": "2.25.1", "verdict": "rejected", "reviewer": "bs.an", "decided_at": "2026-01-02T03:04:18+00:00", "reason": "vessel", "correction": {"center_lps_mm": null, "mean_diameter_mm": null}}');
INSERT INTO public.dispositions VALUES (3, '506c96b0227e447eb0440cceb9fa66ae', NULL, 'bs.an', '2026-01-02 03:04:21', '{"tracking_uid": "2.25.1", "verdict": "accepted", "reviewer": "bs.an", "decided_at": "2026-01-02T03:04:21+00:00", "reason": "", "correction": {"center_lps_mm": null, "mean_diameter_mm": null}}');
INSERT INTO public.documents VALUES (1, '506c96b0227e447eb0440cceb9fa66ae', '1.1', 1, 'seg', '1.1-1-seg', 'preliminary', '\x636f6e74656e74206f6620312e312d312d736567', '2026-01-02 03:04:16');
INSERT INTO public.documents VALUES (2, '506c96b0227e447eb0440cceb9fa66ae', '1.1', 1, 'sr', '1.1-1-sr', 'preliminary', '\x636f6e74656e74206f6620312e312d312d7372', '2026-01-02 03:04:16');
INSERT INTO public.documents VALUES (3, '506c96b0227e447eb0440cceb9fa66ae', '1.1', 1, 'sr', '1.1-final', 'final', '\x636f6e74656e74206f6620312e312d66696e616c', '2026-01-02 03:05:21');
INSERT INTO public.documents VALUES (4, '3f45469da57a4d3dacd0a5728f3d24ca', '1.2', 1, 'seg', '1.2-1-seg', 'preliminary', '\x636f6e74656e74206f6620312e322d312d736567', '2026-01-02 03:05:33');
INSERT INTO public.documents VALUES (5, '3f45469da57a4d3dacd0a5728f3d24ca', '1.2', 1, 'sr', '1.2-1-sr', 'preliminary', '\x636f6e74656e74206f6620312e322d312d7372', '2026-01-02 03:05:33');
INSERT INTO public.documents VALUES (6, '34935e1c72524b6b9c9e729edd072123', '1.3', 1, 'seg', '1.3-1-seg', 'preliminary', '\x636f6e74656e74206f6620312e332d312d736567', '2026-01-02 03:05:46');
INSERT INTO public.documents VALUES (7, '34935e1c72524b6b9c9e729edd072123', '1.3', 1, 'sr', '1.3-1-sr', 'preliminary', '\x636f6e74656e74206f6620312e332d312d7372', '2026-01-02 03:05:46');
INSERT INTO public.facts VALUES ('model', '{"a": 1}');
INSERT INTO public.facts VALUES ('usage', '1');
INSERT INTO public.instances VALUES ('1.1.9.1', '1.1', '1.1.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.1-1.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.1.9.2', '1.1', '1.1.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.1-2.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.2.9.1', '1.2', '1.2.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.2-1.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.2.9.2', '1.2', '1.2.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.2-2.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.3.9.1', '1.3', '1.3.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.3-1.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.3.9.2', '1.3', '1.3.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.3-2.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.3.9.3', '1.3', '1.3.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.3-3.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.5.9.1', '1.5', '1.5.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.5-1.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.5.9.2', '1.5', '1.5.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.5-2.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.4.9.1', '1.4', '1.4.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.4-1.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.4.9.2', '1.4', '1.4.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.4-2.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.6.9.1', '1.6', '1.6.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.6-1.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.pauses VALUES ('destination:pacs', 'bs.an', '2026-01-02 03:05:55');
INSERT INTO public.problems VALUES (1, '2026-01-02 03:05:55', 'bs.an', 'chậm quá');
INSERT INTO public.reviews VALUES ('506c96b0227e447eb0440cceb9fa66ae', 'signed', '{"reviewer": "bs.an", "reviewer_name": "BS. An", "signed_at": "2026-01-02T03:05:21+00:00", "dispositions": [{"tracking_uid": "2.25.1", "verdict": "accepted", "reviewer": "bs.an", "decided_at": "2026-01-02T03:04:21+00:00", "reason": "", "correction": {"center_lps_mm": null, "mean_diameter_mm": null}}]}', '2026-01-02 03:05:21');
INSERT INTO public.reviews VALUES ('3f45469da57a4d3dacd0a5728f3d24ca', 'open', NULL, NULL);
INSERT INTO public.reviews VALUES ('34935e1c72524b6b9c9e729edd072123', 'superseded', NULL, NULL);
INSERT INTO public.studies VALUES ('1.1', 'complete', '{"study_instance_uid": "1.1", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}', '2026-01-02 03:04:05', '2026-01-02 03:04:05');
INSERT INTO public.studies VALUES ('1.2', 'complete', '{"study_instance_uid": "1.2", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}', '2026-01-02 03:04:05', '2026-01-02 03:04:05');
INSERT INTO public.studies VALUES ('1.3', 'complete', '{"study_instance_uid": "1.3", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}', '2026-01-02 03:04:05', '2026-01-02 03:04:05');
INSERT INTO public.studies VALUES ('1.5', 'complete', '{"study_instance_uid": "1.5", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}', '2026-01-02 03:04:05', '2026-01-02 03:04:05');
INSERT INTO public.studies VALUES ('1.4', 'complete', '{"study_instance_uid": "1.4", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}', '2026-01-02 03:04:05', '2026-01-02 03:04:05');
INSERT INTO public.studies VALUES ('1.6', 'receiving', '{"study_instance_uid": "1.6", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}', '2026-01-02 03:04:05', '2026-01-02 03:04:05');
SELECT pg_catalog.setval('public.audit_id_seq', 6, true);
SELECT pg_catalog.setval('public.deliveries_id_seq', 5, true);
SELECT pg_catalog.setval('public.dispositions_id_seq', 3, true);
SELECT pg_catalog.setval('public.documents_id_seq', 7, true);
SELECT pg_catalog.setval('public.problems_id_seq', 1, true);
ALTER TABLE ONLY public.accounts
    ADD CONSTRAINT accounts_pkey PRIMARY KEY (username);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.analyses
    ADD CONSTRAINT analyses_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.audit
    ADD CONSTRAINT audit_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT deliveries_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.dispositions
    ADD CONSTRAINT dispositions_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.documents
    ADD CONSTRAINT documents_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.facts
    ADD CONSTRAINT facts_pkey PRIMARY KEY (key);
ALTER TABLE ONLY public.instances
    ADD CONSTRAINT instances_pkey PRIMARY KEY (sop_instance_uid);
ALTER TABLE ONLY public.analyses
    ADD CONSTRAINT one_analysis_per_revision UNIQUE (study_instance_uid, revision);
ALTER TABLE ONLY public.pauses
    ADD CONSTRAINT pauses_pkey PRIMARY KEY (target);
ALTER TABLE ONLY public.problems
    ADD CONSTRAINT problems_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.reviews
    ADD CONSTRAINT reviews_pkey PRIMARY KEY (analysis_id);
ALTER TABLE ONLY public.studies
    ADD CONSTRAINT studies_pkey PRIMARY KEY (study_instance_uid);
CREATE INDEX ix_analyses_state ON public.analyses USING btree (state);
CREATE INDEX ix_deliveries_document_id ON public.deliveries USING btree (document_id);
CREATE INDEX ix_deliveries_study_instance_uid ON public.deliveries USING btree (study_instance_uid);
CREATE INDEX ix_dispositions_analysis_id ON public.dispositions USING btree (analysis_id);
CREATE INDEX ix_documents_analysis_id ON public.documents USING btree (analysis_id);
CREATE INDEX ix_documents_study_instance_uid ON public.documents USING btree (study_instance_uid);
CREATE INDEX ix_instances_study_instance_uid ON public.instances USING btree (study_instance_uid);
CREATE INDEX ix_studies_last_received_at ON public.studies USING btree (last_received_at);
CREATE INDEX ix_studies_state ON public.studies USING btree (state);
CREATE INDEX lane ON public.deliveries USING btree (destination, state);
CREATE TRIGGER audit_append_only BEFORE DELETE OR UPDATE ON public.audit FOR EACH ROW EXECUTE FUNCTION public.append_only();
CREATE TRIGGER dispositions_append_only BEFORE DELETE OR UPDATE ON public.dispositions FOR EACH ROW EXECUTE FUNCTION public.append_only();
ALTER TABLE ONLY public.analyses
    ADD CONSTRAINT analyses_study_instance_uid_fkey FOREIGN KEY (study_instance_uid) REFERENCES public.studies(study_instance_uid);
ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT deliveries_document_id_fkey FOREIGN KEY (document_id) REFERENCES public.documents(id);
ALTER TABLE ONLY public.dispositions
    ADD CONSTRAINT dispositions_analysis_id_fkey FOREIGN KEY (analysis_id) REFERENCES public.analyses(id);
ALTER TABLE ONLY public.documents
    ADD CONSTRAINT documents_analysis_id_fkey FOREIGN KEY (analysis_id) REFERENCES public.analyses(id);
ALTER TABLE ONLY public.instances
    ADD CONSTRAINT instances_study_instance_uid_fkey FOREIGN KEY (study_instance_uid) REFERENCES public.studies(study_instance_uid);
ALTER TABLE ONLY public.reviews
    ADD CONSTRAINT reviews_analysis_id_fkey FOREIGN KEY (analysis_id) REFERENCES public.analyses(id);
