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
    finished_at timestamp without time zone,
    state_since timestamp without time zone NOT NULL,
    completeness character varying(16),
    images character varying(64),
    claims integer DEFAULT 0 NOT NULL,
    turn_at timestamp without time zone NOT NULL
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
CREATE TABLE public.commitment_requests (
    transaction_uid character varying(64) NOT NULL,
    ae_title character varying(16) NOT NULL,
    content text NOT NULL,
    asked_at timestamp without time zone NOT NULL,
    due_at timestamp without time zone NOT NULL
);
CREATE TABLE public.commitments (
    id integer NOT NULL,
    delivery_id integer NOT NULL,
    attempts integer NOT NULL,
    archive character varying(32) NOT NULL,
    transaction_uid character varying(64) NOT NULL,
    sop_instance_uid character varying(64) NOT NULL,
    state character varying(16) NOT NULL,
    asked_at timestamp without time zone NOT NULL,
    answered_at timestamp without time zone
);
CREATE SEQUENCE public.commitments_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.commitments_id_seq OWNED BY public.commitments.id;
CREATE TABLE public.damages (
    id integer NOT NULL,
    study_instance_uid character varying(64) NOT NULL,
    sop_instance_uid character varying(64) NOT NULL,
    sha256 character varying(64) NOT NULL,
    kind character varying(16) NOT NULL,
    found_at timestamp without time zone NOT NULL
);
CREATE SEQUENCE public.damages_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.damages_id_seq OWNED BY public.damages.id;
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
    updated_at timestamp without time zone NOT NULL,
    queued_at timestamp without time zone NOT NULL
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
    created_at timestamp without time zone NOT NULL,
    outdated boolean DEFAULT false NOT NULL
);
CREATE SEQUENCE public.documents_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.documents_id_seq OWNED BY public.documents.id;
CREATE TABLE public.expired_images (
    study_instance_uid character varying(64) NOT NULL,
    images text NOT NULL,
    late boolean NOT NULL
);
CREATE TABLE public.facts (
    key character varying(128) NOT NULL,
    value text NOT NULL
);
CREATE TABLE public.figures (
    analysis_id character varying(64) NOT NULL,
    model text,
    outcome character varying(16),
    ended_at timestamp without time zone,
    receive_to_result_s double precision,
    signed_at timestamp without time zone,
    result_to_review_s double precision,
    accepted integer,
    modified integer,
    rejected integer,
    missed integer
);
CREATE TABLE public.hospital_messages (
    identity character varying(64) NOT NULL,
    taken_at timestamp without time zone NOT NULL
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
CREATE TABLE public.orders (
    id integer NOT NULL,
    placer text NOT NULL,
    filler text NOT NULL,
    accession_number text NOT NULL,
    study_instance_uid text NOT NULL,
    cancelled boolean NOT NULL,
    told_at timestamp without time zone NOT NULL,
    content text NOT NULL
);
CREATE SEQUENCE public.orders_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.orders_id_seq OWNED BY public.orders.id;
CREATE TABLE public.patient_merges (
    patient_id text NOT NULL,
    issuer text NOT NULL,
    surviving_id text NOT NULL,
    surviving_issuer text NOT NULL,
    told_at timestamp without time zone NOT NULL
);
CREATE TABLE public.patient_updates (
    patient_id text NOT NULL,
    issuer text NOT NULL,
    told_at timestamp without time zone NOT NULL
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
CREATE TABLE public.reconciliations (
    id integer NOT NULL,
    first date NOT NULL,
    last date NOT NULL,
    asked_by character varying(64) NOT NULL,
    asked_at timestamp without time zone NOT NULL,
    ended_at timestamp without time zone,
    report text
);
CREATE SEQUENCE public.reconciliations_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.reconciliations_id_seq OWNED BY public.reconciliations.id;
CREATE TABLE public.reviews (
    analysis_id character varying(64) NOT NULL,
    state character varying(16) NOT NULL,
    signed text,
    signed_at timestamp without time zone,
    state_since timestamp without time zone NOT NULL,
    acknowledged_by character varying(64)
);
CREATE TABLE public.studies (
    study_instance_uid character varying(64) NOT NULL,
    state character varying(16) NOT NULL,
    header text NOT NULL,
    first_received_at timestamp without time zone NOT NULL,
    last_received_at timestamp without time zone NOT NULL,
    state_since timestamp without time zone NOT NULL,
    receiving_since timestamp without time zone NOT NULL,
    patient_id text NOT NULL
);
ALTER TABLE ONLY public.audit ALTER COLUMN id SET DEFAULT nextval('public.audit_id_seq'::regclass);
ALTER TABLE ONLY public.commitments ALTER COLUMN id SET DEFAULT nextval('public.commitments_id_seq'::regclass);
ALTER TABLE ONLY public.damages ALTER COLUMN id SET DEFAULT nextval('public.damages_id_seq'::regclass);
ALTER TABLE ONLY public.deliveries ALTER COLUMN id SET DEFAULT nextval('public.deliveries_id_seq'::regclass);
ALTER TABLE ONLY public.dispositions ALTER COLUMN id SET DEFAULT nextval('public.dispositions_id_seq'::regclass);
ALTER TABLE ONLY public.documents ALTER COLUMN id SET DEFAULT nextval('public.documents_id_seq'::regclass);
ALTER TABLE ONLY public.orders ALTER COLUMN id SET DEFAULT nextval('public.orders_id_seq'::regclass);
ALTER TABLE ONLY public.problems ALTER COLUMN id SET DEFAULT nextval('public.problems_id_seq'::regclass);
ALTER TABLE ONLY public.reconciliations ALTER COLUMN id SET DEFAULT nextval('public.reconciliations_id_seq'::regclass);
INSERT INTO public.accounts VALUES ('bs.an', 'BS. An', 'reviewer', '$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA');
INSERT INTO public.alembic_version VALUES ('0003');
INSERT INTO public.analyses VALUES ('58814d476f194802919755b9d2cea01f', '1.4', 1, 'succeeded', 1, '{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}', 'phoi-lung-nodule', '1.0.0', 0, '2026-01-02 03:04:38', 'read', 1, '', '{"identity": {"study_instance_uid": "1.4", "series_instance_uid": "1.4.9", "input_digest": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "model": {"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}, "revision": 1}, "outcome": "positive", "nodules": [{"number": 1, "tracking_uid": "2.25.1", "finding": {"center_lps_mm": [56.0, 86.0, -116.0], "probability": 0.93, "long_axis_mm": 14.0, "short_axis_mm": 10.0, "mean_diameter_mm": 12.0, "volume_mm3": 900.0, "attenuation": "solid", "solid_diameter_mm": null, "mean_hu": 31.0, "side": "left", "lobe": null, "long_axis_lps_mm": [[49.0, 86.0, -116.0], [63.0, 86.0, -116.0]], "short_axis_lps_mm": [[56.0, 81.0, -116.0], [56.0, 91.0, -116.0]], "mask": {"offset": [1, 2, 3], "shape": [2, 3, 4], "bits": "////"}}, "size_class": {"lung_rads": "4A", "fleischner": ">8 mm", "basis": "mean_diameter"}}], "suggested_priority": "urgent", "coverage": {"apex": true, "base": true, "volume_ml": 4200.0}, "reason": null, "detail": "", "series_reason": "the only series", "analysed_at": "2026-01-02T03:04:05+00:00", "timing_s": {}, "passed_over": {}, "runtime": "", "completeness": "geometry"}', '2026-01-02 03:04:38', '2026-01-02 03:04:38', '2026-01-02 03:04:44', '2026-01-02 03:04:44', 'geometry', 'ea3e2a4d174439359b77267323040ea2fd621d9bce80fd642b2d724e5a1bffe8', 1, '2026-01-03 03:04:38');
INSERT INTO public.analyses VALUES ('c948b16b1555441db668ef85fbd2dd72', '1.1', 1, 'succeeded', 1, '{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}', 'phoi-lung-nodule', '1.0.0', 0, '2026-01-02 03:04:07', 'read', 1, '', '{"identity": {"study_instance_uid": "1.1", "series_instance_uid": "1.1.9", "input_digest": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "model": {"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}, "revision": 1}, "outcome": "positive", "nodules": [{"number": 1, "tracking_uid": "2.25.1", "finding": {"center_lps_mm": [56.0, 86.0, -116.0], "probability": 0.93, "long_axis_mm": 14.0, "short_axis_mm": 10.0, "mean_diameter_mm": 12.0, "volume_mm3": 900.0, "attenuation": "solid", "solid_diameter_mm": null, "mean_hu": 31.0, "side": "left", "lobe": null, "long_axis_lps_mm": [[49.0, 86.0, -116.0], [63.0, 86.0, -116.0]], "short_axis_lps_mm": [[56.0, 81.0, -116.0], [56.0, 91.0, -116.0]], "mask": {"offset": [1, 2, 3], "shape": [2, 3, 4], "bits": "////"}}, "size_class": {"lung_rads": "4A", "fleischner": ">8 mm", "basis": "mean_diameter"}}], "suggested_priority": "urgent", "coverage": {"apex": true, "base": true, "volume_ml": 4200.0}, "reason": null, "detail": "", "series_reason": "the only series", "analysed_at": "2026-01-02T03:04:05+00:00", "timing_s": {}, "passed_over": {}, "runtime": "", "completeness": "geometry"}', '2026-01-02 03:04:07', '2026-01-02 03:04:07', '2026-01-02 03:04:13', '2026-01-02 03:04:13', 'confirmed', '0cfa1b0be463e05d12a6bfc9cd18fa32c29a22db43dab14b5cfe3ebed77e232a', 1, '2026-01-03 03:04:07');
INSERT INTO public.analyses VALUES ('123626717541410aaf94be7f861819ec', '1.2', 1, 'succeeded', 1, '{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}', 'phoi-lung-nodule', '1.0.0', 0, '2026-01-02 03:04:27', 'read', 1, '', '{"identity": {"study_instance_uid": "1.2", "series_instance_uid": "1.2.9", "input_digest": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "model": {"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}, "revision": 1}, "outcome": "positive", "nodules": [{"number": 1, "tracking_uid": "2.25.1", "finding": {"center_lps_mm": [56.0, 86.0, -116.0], "probability": 0.93, "long_axis_mm": 14.0, "short_axis_mm": 10.0, "mean_diameter_mm": 12.0, "volume_mm3": 900.0, "attenuation": "solid", "solid_diameter_mm": null, "mean_hu": 31.0, "side": "left", "lobe": null, "long_axis_lps_mm": [[49.0, 86.0, -116.0], [63.0, 86.0, -116.0]], "short_axis_lps_mm": [[56.0, 81.0, -116.0], [56.0, 91.0, -116.0]], "mask": {"offset": [1, 2, 3], "shape": [2, 3, 4], "bits": "////"}}, "size_class": {"lung_rads": "4A", "fleischner": ">8 mm", "basis": "mean_diameter"}}], "suggested_priority": "urgent", "coverage": {"apex": true, "base": true, "volume_ml": 4200.0}, "reason": null, "detail": "", "series_reason": "the only series", "analysed_at": "2026-01-02T03:04:05+00:00", "timing_s": {}, "passed_over": {}, "runtime": "", "completeness": "geometry"}', '2026-01-02 03:04:27', '2026-01-02 03:04:27', '2026-01-02 03:04:33', '2026-01-02 03:04:33', 'unconfirmed', '7ceb2f429adf8846e0dc09f97597d4ff7dba7fe481b58b81774b3e947173cbec', 1, '2026-01-03 03:04:27');
INSERT INTO public.analyses VALUES ('cfd243cc3ece408fa304a4b2f8791055', '1.3', 1, 'superseded', 1, '{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}', 'phoi-lung-nodule', '1.0.0', 0, '2026-01-02 03:04:49', 'read', 1, '', '{"identity": {"study_instance_uid": "1.3", "series_instance_uid": "1.3.9", "input_digest": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "model": {"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}, "revision": 1}, "outcome": "positive", "nodules": [{"number": 1, "tracking_uid": "2.25.1", "finding": {"center_lps_mm": [56.0, 86.0, -116.0], "probability": 0.93, "long_axis_mm": 14.0, "short_axis_mm": 10.0, "mean_diameter_mm": 12.0, "volume_mm3": 900.0, "attenuation": "solid", "solid_diameter_mm": null, "mean_hu": 31.0, "side": "left", "lobe": null, "long_axis_lps_mm": [[49.0, 86.0, -116.0], [63.0, 86.0, -116.0]], "short_axis_lps_mm": [[56.0, 81.0, -116.0], [56.0, 91.0, -116.0]], "mask": {"offset": [1, 2, 3], "shape": [2, 3, 4], "bits": "////"}}, "size_class": {"lung_rads": "4A", "fleischner": ">8 mm", "basis": "mean_diameter"}}], "suggested_priority": "urgent", "coverage": {"apex": true, "base": true, "volume_ml": 4200.0}, "reason": null, "detail": "", "series_reason": "the only series", "analysed_at": "2026-01-02T03:04:05+00:00", "timing_s": {}, "passed_over": {}, "runtime": "", "completeness": "geometry"}', '2026-01-02 03:04:49', '2026-01-02 03:04:49', '2026-01-02 03:04:55', '2026-01-02 03:04:56', NULL, 'a0bdad078acadfb9a11539d44da204f25093b215d4916c90e27767ac4097a76f', 1, '2026-01-03 03:04:49');
INSERT INTO public.analyses VALUES ('348fe255cc4c408fbb66d46daeb54e51', '1.3', 2, 'queued', 1, '{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}', 'phoi-lung-nodule', '1.0.0', 0, '2026-01-02 03:05:59', '', 0, 'no worker answers', NULL, '2026-01-02 03:04:56', '2026-01-02 03:04:59', NULL, '2026-01-02 03:04:59', NULL, '94f067cca13c0c02bffa79dc31baddc825f92193a07f18c81f9d864596eff26c', 1, '2026-01-03 03:04:56');
INSERT INTO public.analyses VALUES ('ba87209211084d1996a42b24cb715f8a', '1.8', 1, 'superseded', 1, '{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}', 'phoi-lung-nodule', '1.0.0', 0, '2026-01-02 03:04:59', '', 0, '', NULL, '2026-01-02 03:04:59', '2026-01-02 03:04:59', NULL, '2026-01-02 03:05:00', 'confirmed', 'feafd640b14ac654fb739927d5294f14851364333cb8d1cf7a44546ff26b210d', 1, '2026-01-03 03:04:59');
INSERT INTO public.analyses VALUES ('33e14de0614d4983b100855fac922f84', '1.5', 1, 'running', 0, '{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}', 'phoi-lung-nodule', '1.0.0', 0, '2026-01-02 03:05:03', 'detect', 0.5, '', NULL, '2026-01-02 03:05:03', '2026-01-02 03:05:03', NULL, '2026-01-02 03:05:03', 'confirmed', '167ed55853b73d36cb8f6b17d3ddcc03c54059e0a3fafc38bfea85796be47fd3', 1, '2026-01-02 03:05:03');
INSERT INTO public.audit VALUES (1, '2026-01-02 03:04:18', 'bs.an', 'decide', '1.1', 'rejected');
INSERT INTO public.audit VALUES (2, '2026-01-02 03:04:19', 'bs.an', 'undo', '1.1', '');
INSERT INTO public.audit VALUES (3, '2026-01-02 03:04:20', 'bs.an', 'decide', '1.1', 'modified');
INSERT INTO public.audit VALUES (4, '2026-01-02 03:04:21', 'bs.an', 'sign', '1.1', '');
INSERT INTO public.audit VALUES (5, '2026-01-02 03:05:07', 'bs.an', 'pause', NULL, 'destination:pacs');
INSERT INTO public.audit VALUES (6, '2026-01-02 03:05:07', 'bs.an', 'report_problem', NULL, '');
INSERT INTO public.commitment_requests VALUES ('1.9.2', 'PACS', '{"transaction_uid": "1.9.2", "ae_title": "PACS", "references": [{"sop_class_uid": "1.2.840.10008.5.1.4.1.1.2", "sop_instance_uid": "1.1.9.1"}], "attempts": 0}', '2026-01-02 03:04:25', '2026-01-02 03:04:25');
INSERT INTO public.commitments VALUES (1, 1, 1, 'pacs', '1.9.1', '1.1.1.1', 'committed', '2026-01-02 03:04:23', '2026-01-02 03:04:24');
INSERT INTO public.commitments VALUES (2, 3, 1, 'pacs', '1.9.1', '1.1.1.2', 'committed', '2026-01-02 03:04:23', '2026-01-02 03:04:24');
INSERT INTO public.commitments VALUES (3, 5, 1, 'pacs', '1.9.1', '1.1.final', 'committed', '2026-01-02 03:04:23', '2026-01-02 03:04:24');
INSERT INTO public.damages VALUES (1, '1.8', '1.8.9.2', '00', 'changed', '2026-01-02 03:05:00');
INSERT INTO public.deliveries VALUES (1, 1, '1.1', 'pacs', 'delivered', 1, 0, '2026-01-02 03:04:44', '', '2026-01-02 03:04:13', '2026-01-02 03:04:14', '2026-01-02 03:04:13');
INSERT INTO public.deliveries VALUES (3, 2, '1.1', 'pacs', 'delivered', 1, 0, '2026-01-02 03:04:45', '', '2026-01-02 03:04:13', '2026-01-02 03:04:15', '2026-01-02 03:04:13');
INSERT INTO public.deliveries VALUES (2, 1, '1.1', 'emr', 'delivered', 1, 0, '2026-01-02 03:04:46', '', '2026-01-02 03:04:13', '2026-01-02 03:04:16', '2026-01-02 03:04:13');
INSERT INTO public.deliveries VALUES (4, 2, '1.1', 'emr', 'delivered', 1, 0, '2026-01-02 03:04:47', '', '2026-01-02 03:04:13', '2026-01-02 03:04:17', '2026-01-02 03:04:13');
INSERT INTO public.deliveries VALUES (5, 3, '1.1', 'pacs', 'delivered', 1, 0, '2026-01-02 03:04:52', '', '2026-01-02 03:04:21', '2026-01-02 03:04:22', '2026-01-02 03:04:21');
INSERT INTO public.deliveries VALUES (8, 5, '1.2', 'pacs', 'pending', 0, 0, '2026-01-02 03:04:33', '', '2026-01-02 03:04:33', '2026-01-02 03:04:33', '2026-01-02 03:04:33');
INSERT INTO public.deliveries VALUES (9, 5, '1.2', 'emr', 'pending', 0, 0, '2026-01-02 03:04:33', '', '2026-01-02 03:04:33', '2026-01-02 03:04:33', '2026-01-02 03:04:33');
INSERT INTO public.deliveries VALUES (6, 4, '1.2', 'pacs', 'dead', 1, 1, '2026-01-02 03:05:04', 'no room', '2026-01-02 03:04:33', '2026-01-02 03:04:34', '2026-01-02 03:04:33');
INSERT INTO public.deliveries VALUES (7, 4, '1.2', 'emr', 'pending', 1, 1, '2026-01-02 03:05:05', 'no route', '2026-01-02 03:04:33', '2026-01-02 03:04:35', '2026-01-02 03:04:33');
INSERT INTO public.deliveries VALUES (10, 6, '1.4', 'archive', 'delivered', 1, 0, '2026-01-02 03:05:15', '', '2026-01-02 03:04:44', '2026-01-02 03:04:45', '2026-01-02 03:04:44');
INSERT INTO public.deliveries VALUES (11, 7, '1.4', 'archive', 'delivered', 1, 0, '2026-01-02 03:05:16', '', '2026-01-02 03:04:44', '2026-01-02 03:04:46', '2026-01-02 03:04:44');
INSERT INTO public.deliveries VALUES (12, 8, '1.3', 'pacs', 'superseded', 0, 0, '2026-01-02 03:04:55', '', '2026-01-02 03:04:55', '2026-01-02 03:04:56', '2026-01-02 03:04:55');
INSERT INTO public.deliveries VALUES (13, 8, '1.3', 'emr', 'superseded', 0, 0, '2026-01-02 03:04:55', '', '2026-01-02 03:04:55', '2026-01-02 03:04:56', '2026-01-02 03:04:55');
INSERT INTO public.deliveries VALUES (14, 9, '1.3', 'pacs', 'superseded', 0, 0, '2026-01-02 03:04:55', '', '2026-01-02 03:04:55', '2026-01-02 03:04:56', '2026-01-02 03:04:55');
INSERT INTO public.deliveries VALUES (15, 9, '1.3', 'emr', 'superseded', 0, 0, '2026-01-02 03:04:55', '', '2026-01-02 03:04:55', '2026-01-02 03:04:56', '2026-01-02 03:04:55');
INSERT INTO public.deliveries VALUES (16, 10, NULL, 'mlflow', 'pending', 0, 0, '2026-01-02 03:05:08', '', '2026-01-02 03:05:08', '2026-01-02 03:05:08', '2026-01-02 03:05:08');
INSERT INTO public.dispositions VALUES (1, 'c948b16b1555441db668ef85fbd2dd72', NULL, 'bs.an', '2026-01-02 03:04:18', '{"tracking_uid": "2.25.1", "verdict": "rejected", "reviewer": "bs.an", "decided_at": "2026-01-02T03:04:18+00:00", "reason": "mạch máu", "correction": {"center_lps_mm": null, "mean_diameter_mm": null}}');
INSERT INTO public.dispositions VALUES (2, 'c948b16b1555441db668ef85fbd2dd72', 1, 'bs.an', '2026-01-02 03:04:19', '{"tracking_uid": "2.25.1", "verdict": "rejected", "reviewer": "bs.an", "decided_at": "2026-01-02T03:04:18+00:00", "reason": "mạch máu", "correction": {"center_lps_mm": null, "mean_diameter_mm": null}}');
INSERT INTO public.dispositions VALUES (3, 'c948b16b1555441db668ef85fbd2dd72', NULL, 'bs.an', '2026-01-02 03:04:20', '{"tracking_uid": "2.25.1", "verdict": "modified", "reviewer": "bs.an", "decided_at": "2026-01-02T03:04:20+00:00", "reason": "", "correction": {"center_lps_mm": null, "mean_diameter_mm": 9.5}}');
INSERT INTO public.documents VALUES (1, 'c948b16b1555441db668ef85fbd2dd72', '1.1', 1, 'seg', '1.1.1.1', 'preliminary', '\x636f6e74656e74206f6620312e312e312e31', '2026-01-02 03:04:13', false);
INSERT INTO public.documents VALUES (2, 'c948b16b1555441db668ef85fbd2dd72', '1.1', 1, 'sr', '1.1.1.2', 'preliminary', '\x636f6e74656e74206f6620312e312e312e32', '2026-01-02 03:04:13', false);
INSERT INTO public.documents VALUES (3, 'c948b16b1555441db668ef85fbd2dd72', '1.1', 1, 'sr', '1.1.final', 'final', '\x636f6e74656e74206f6620312e312e66696e616c', '2026-01-02 03:04:21', false);
INSERT INTO public.documents VALUES (4, '123626717541410aaf94be7f861819ec', '1.2', 1, 'seg', '1.2.1.1', 'preliminary', '\x636f6e74656e74206f6620312e322e312e31', '2026-01-02 03:04:33', false);
INSERT INTO public.documents VALUES (5, '123626717541410aaf94be7f861819ec', '1.2', 1, 'sr', '1.2.1.2', 'preliminary', '\x636f6e74656e74206f6620312e322e312e32', '2026-01-02 03:04:33', false);
INSERT INTO public.documents VALUES (6, '58814d476f194802919755b9d2cea01f', '1.4', 1, 'seg', '1.4.1.1', 'preliminary', '\x636f6e74656e74206f6620312e342e312e31', '2026-01-02 03:04:44', false);
INSERT INTO public.documents VALUES (7, '58814d476f194802919755b9d2cea01f', '1.4', 1, 'sr', '1.4.1.2', 'preliminary', '\x636f6e74656e74206f6620312e342e312e32', '2026-01-02 03:04:44', false);
INSERT INTO public.documents VALUES (8, 'cfd243cc3ece408fa304a4b2f8791055', '1.3', 1, 'seg', '1.3.1.1', 'preliminary', '\x636f6e74656e74206f6620312e332e312e31', '2026-01-02 03:04:55', false);
INSERT INTO public.documents VALUES (9, 'cfd243cc3ece408fa304a4b2f8791055', '1.3', 1, 'sr', '1.3.1.2', 'preliminary', '\x636f6e74656e74206f6620312e332e312e32', '2026-01-02 03:04:55', false);
INSERT INTO public.documents VALUES (10, NULL, NULL, 0, 'usage', 'usage-1', 'final', '\x636f6e74656e74206f662075736167652d31', '2026-01-02 03:05:08', false);
INSERT INTO public.expired_images VALUES ('1.4', '1.4.9 1.4.9.1
1.4.9 1.4.9.2', false);
INSERT INTO public.facts VALUES ('model', '{"a": 1}');
INSERT INTO public.facts VALUES ('usage', '1');
INSERT INTO public.figures VALUES ('c948b16b1555441db668ef85fbd2dd72', '{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}', 'positive', '2026-01-02 03:04:13', 8, '2026-01-02 03:04:21', 8, 0, 1, 0, 0);
INSERT INTO public.figures VALUES ('123626717541410aaf94be7f861819ec', '{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}', 'positive', '2026-01-02 03:04:33', 28, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.figures VALUES ('58814d476f194802919755b9d2cea01f', '{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}', 'positive', '2026-01-02 03:04:44', 39, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.figures VALUES ('cfd243cc3ece408fa304a4b2f8791055', '{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}', 'positive', '2026-01-02 03:04:55', 50, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.figures VALUES ('348fe255cc4c408fbb66d46daeb54e51', '{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.figures VALUES ('ba87209211084d1996a42b24cb715f8a', '{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.figures VALUES ('33e14de0614d4983b100855fac922f84', '{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.hospital_messages VALUES ('m1', '2026-01-02 03:04:05');
INSERT INTO public.hospital_messages VALUES ('m2', '2026-01-02 03:05:06');
INSERT INTO public.instances VALUES ('1.1.9.1', '1.1', '1.1.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.1-1.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.1.9.2', '1.1', '1.1.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.1-2.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.2.9.1', '1.2', '1.2.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.2-1.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.2.9.2', '1.2', '1.2.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.2-2.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.3.9.1', '1.3', '1.3.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.3-1.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.3.9.2', '1.3', '1.3.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.3-2.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.8.9.1', '1.8', '1.8.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.8-1.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.5.9.1', '1.5', '1.5.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.5-1.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.5.9.2', '1.5', '1.5.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.5-2.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.6.9.1', '1.6', '1.6.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.6-1.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.instances VALUES ('1.7.9.1', '1.7', '1.7.9', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 'aa/1.7-1.dcm', '00', 1000, 'CT', 'PACS', '2026-01-02 03:04:05');
INSERT INTO public.orders VALUES (1, 'P1', '', 'ACC1', '', false, '2026-01-02 03:04:05', '{"placer": {"value": "P1", "namespace": "HIS"}, "filler": {"value": "", "namespace": ""}, "accession_number": "ACC1", "study_instance_uid": "", "patients": [{"patient_id": "BN-0042", "issuer": "BVTEST"}], "requester": "Trần^An", "clinical_question": "Nốt phổi?", "procedure_code": "", "procedure": "", "priority": "urgent"}');
INSERT INTO public.patient_merges VALUES ('BN-0001', 'BVTEST', 'BN-0042', 'BVTEST', '2026-01-02 03:05:06');
INSERT INTO public.pauses VALUES ('destination:pacs', 'bs.an', '2026-01-02 03:05:07');
INSERT INTO public.problems VALUES (1, '2026-01-02 03:05:07', 'bs.an', 'chậm quá');
INSERT INTO public.reconciliations VALUES (1, '2026-01-01', '2026-01-02', 'bs.an', '2026-01-02 03:05:08', '2026-01-02 03:05:08', '{"compared": 3, "passed_over": 1, "lacking": [{"study_instance_uid": "1.99", "lack": "images_missing", "mending": "fetched", "number": 2}], "trouble": ""}');
INSERT INTO public.reconciliations VALUES (2, '2026-01-02', '2026-01-02', 'nightly', '2026-01-02 03:05:08', NULL, NULL);
INSERT INTO public.reviews VALUES ('c948b16b1555441db668ef85fbd2dd72', 'signed', '{"reviewer": "bs.an", "reviewer_name": "BS. An", "signed_at": "2026-01-02T03:04:21+00:00", "dispositions": [{"tracking_uid": "2.25.1", "verdict": "modified", "reviewer": "bs.an", "decided_at": "2026-01-02T03:04:20+00:00", "reason": "", "correction": {"center_lps_mm": null, "mean_diameter_mm": 9.5}}]}', '2026-01-02 03:04:21', '2026-01-02 03:04:21', NULL);
INSERT INTO public.reviews VALUES ('123626717541410aaf94be7f861819ec', 'open', NULL, NULL, '2026-01-02 03:04:33', NULL);
INSERT INTO public.reviews VALUES ('58814d476f194802919755b9d2cea01f', 'open', NULL, NULL, '2026-01-02 03:04:44', NULL);
INSERT INTO public.reviews VALUES ('cfd243cc3ece408fa304a4b2f8791055', 'superseded', NULL, NULL, '2026-01-02 03:04:56', NULL);
INSERT INTO public.studies VALUES ('1.1', 'complete', '{"study_instance_uid": "1.1", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}', '2026-01-02 03:04:05', '2026-01-02 03:04:05', '2026-01-02 03:04:07', '2026-01-02 03:04:05', 'BN-0042');
INSERT INTO public.studies VALUES ('1.2', 'complete', '{"study_instance_uid": "1.2", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}', '2026-01-02 03:04:05', '2026-01-02 03:04:05', '2026-01-02 03:04:27', '2026-01-02 03:04:05', 'BN-0042');
INSERT INTO public.studies VALUES ('1.4', 'expired', '{"study_instance_uid": "1.4", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}', '2026-01-02 03:04:05', '2026-01-02 03:04:05', '2026-01-02 03:04:47', '2026-01-02 03:04:05', 'BN-0042');
INSERT INTO public.studies VALUES ('1.3', 'complete', '{"study_instance_uid": "1.3", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}', '2026-01-02 03:04:05', '2026-01-02 03:04:05', '2026-01-02 03:04:56', '2026-01-02 03:04:05', 'BN-0042');
INSERT INTO public.studies VALUES ('1.8', 'receiving', '{"study_instance_uid": "1.8", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}', '2026-01-02 03:04:05', '2026-01-02 03:04:05', '2026-01-02 03:05:00', '2026-01-02 03:05:00', 'BN-0042');
INSERT INTO public.studies VALUES ('1.5', 'complete', '{"study_instance_uid": "1.5", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}', '2026-01-02 03:04:05', '2026-01-02 03:04:05', '2026-01-02 03:05:03', '2026-01-02 03:04:05', 'BN-0042');
INSERT INTO public.studies VALUES ('1.6', 'receiving', '{"study_instance_uid": "1.6", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}', '2026-01-02 03:04:05', '2026-01-02 03:04:05', '2026-01-02 03:04:05', '2026-01-02 03:04:05', 'BN-0042');
INSERT INTO public.studies VALUES ('1.7', 'counting', '{"study_instance_uid": "1.7", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}', '2026-01-02 03:04:05', '2026-01-02 03:04:05', '2026-01-02 03:05:05', '2026-01-02 03:04:05', 'BN-0042');
SELECT pg_catalog.setval('public.audit_id_seq', 6, true);
SELECT pg_catalog.setval('public.commitments_id_seq', 3, true);
SELECT pg_catalog.setval('public.damages_id_seq', 1, true);
SELECT pg_catalog.setval('public.deliveries_id_seq', 16, true);
SELECT pg_catalog.setval('public.dispositions_id_seq', 3, true);
SELECT pg_catalog.setval('public.documents_id_seq', 10, true);
SELECT pg_catalog.setval('public.orders_id_seq', 1, true);
SELECT pg_catalog.setval('public.problems_id_seq', 1, true);
SELECT pg_catalog.setval('public.reconciliations_id_seq', 2, true);
ALTER TABLE ONLY public.accounts
    ADD CONSTRAINT accounts_pkey PRIMARY KEY (username);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.analyses
    ADD CONSTRAINT analyses_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.audit
    ADD CONSTRAINT audit_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.commitment_requests
    ADD CONSTRAINT commitment_requests_pkey PRIMARY KEY (transaction_uid, ae_title);
ALTER TABLE ONLY public.commitments
    ADD CONSTRAINT commitments_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.damages
    ADD CONSTRAINT damages_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT deliveries_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.dispositions
    ADD CONSTRAINT dispositions_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.documents
    ADD CONSTRAINT documents_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.expired_images
    ADD CONSTRAINT expired_images_pkey PRIMARY KEY (study_instance_uid);
ALTER TABLE ONLY public.facts
    ADD CONSTRAINT facts_pkey PRIMARY KEY (key);
ALTER TABLE ONLY public.figures
    ADD CONSTRAINT figures_pkey PRIMARY KEY (analysis_id);
ALTER TABLE ONLY public.hospital_messages
    ADD CONSTRAINT hospital_messages_pkey PRIMARY KEY (identity);
ALTER TABLE ONLY public.instances
    ADD CONSTRAINT instances_pkey PRIMARY KEY (sop_instance_uid);
ALTER TABLE ONLY public.analyses
    ADD CONSTRAINT one_analysis_per_revision UNIQUE (study_instance_uid, revision);
ALTER TABLE ONLY public.orders
    ADD CONSTRAINT orders_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.patient_merges
    ADD CONSTRAINT patient_merges_pkey PRIMARY KEY (patient_id, issuer);
ALTER TABLE ONLY public.patient_updates
    ADD CONSTRAINT patient_updates_pkey PRIMARY KEY (patient_id, issuer);
ALTER TABLE ONLY public.pauses
    ADD CONSTRAINT pauses_pkey PRIMARY KEY (target);
ALTER TABLE ONLY public.problems
    ADD CONSTRAINT problems_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.reconciliations
    ADD CONSTRAINT reconciliations_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.reviews
    ADD CONSTRAINT reviews_pkey PRIMARY KEY (analysis_id);
ALTER TABLE ONLY public.studies
    ADD CONSTRAINT studies_pkey PRIMARY KEY (study_instance_uid);
CREATE INDEX analyses_by_state ON public.analyses USING btree (state, state_since);
CREATE INDEX commitments_by_state ON public.commitments USING btree (archive, state);
CREATE INDEX deliveries_by_state ON public.deliveries USING btree (destination, state, updated_at);
CREATE INDEX deliveries_of_all_lanes ON public.deliveries USING btree (state, queued_at);
CREATE INDEX ix_commitment_requests_due_at ON public.commitment_requests USING btree (due_at);
CREATE INDEX ix_commitments_delivery_id ON public.commitments USING btree (delivery_id);
CREATE INDEX ix_commitments_transaction_uid ON public.commitments USING btree (transaction_uid);
CREATE INDEX ix_damages_study_instance_uid ON public.damages USING btree (study_instance_uid);
CREATE INDEX ix_deliveries_document_id ON public.deliveries USING btree (document_id);
CREATE INDEX ix_deliveries_study_instance_uid ON public.deliveries USING btree (study_instance_uid);
CREATE INDEX ix_dispositions_analysis_id ON public.dispositions USING btree (analysis_id);
CREATE INDEX ix_documents_analysis_id ON public.documents USING btree (analysis_id);
CREATE INDEX ix_documents_study_instance_uid ON public.documents USING btree (study_instance_uid);
CREATE INDEX ix_figures_ended_at ON public.figures USING btree (ended_at);
CREATE INDEX ix_figures_signed_at ON public.figures USING btree (signed_at);
CREATE INDEX ix_hospital_messages_taken_at ON public.hospital_messages USING btree (taken_at);
CREATE INDEX ix_instances_study_instance_uid ON public.instances USING btree (study_instance_uid);
CREATE INDEX ix_orders_accession_number ON public.orders USING btree (accession_number);
CREATE INDEX ix_orders_filler ON public.orders USING btree (filler);
CREATE INDEX ix_orders_placer ON public.orders USING btree (placer);
CREATE INDEX ix_orders_study_instance_uid ON public.orders USING btree (study_instance_uid);
CREATE INDEX ix_patient_merges_surviving_id ON public.patient_merges USING btree (surviving_id);
CREATE INDEX ix_studies_first_received_at ON public.studies USING btree (first_received_at);
CREATE INDEX ix_studies_last_received_at ON public.studies USING btree (last_received_at);
CREATE INDEX ix_studies_patient_id ON public.studies USING btree (patient_id);
CREATE INDEX lane ON public.deliveries USING btree (destination, state);
CREATE INDEX later_revisions ON public.analyses USING btree (study_instance_uid) WHERE (revision > 1);
CREATE INDEX outdated_documents ON public.documents USING btree (study_instance_uid) WHERE outdated;
CREATE INDEX queue ON public.analyses USING btree (state, turn_at);
CREATE INDEX reviews_by_state ON public.reviews USING btree (state, state_since);
CREATE INDEX studies_by_state ON public.studies USING btree (state, state_since);
CREATE INDEX troubled ON public.deliveries USING btree (destination, failed_tries) WHERE (failed_tries > 0);
CREATE TRIGGER audit_append_only BEFORE DELETE OR UPDATE ON public.audit FOR EACH ROW EXECUTE FUNCTION public.append_only();
CREATE TRIGGER dispositions_append_only BEFORE DELETE OR UPDATE ON public.dispositions FOR EACH ROW EXECUTE FUNCTION public.append_only();
ALTER TABLE ONLY public.analyses
    ADD CONSTRAINT analyses_study_instance_uid_fkey FOREIGN KEY (study_instance_uid) REFERENCES public.studies(study_instance_uid);
ALTER TABLE ONLY public.commitments
    ADD CONSTRAINT commitments_delivery_id_fkey FOREIGN KEY (delivery_id) REFERENCES public.deliveries(id);
ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT deliveries_document_id_fkey FOREIGN KEY (document_id) REFERENCES public.documents(id);
ALTER TABLE ONLY public.dispositions
    ADD CONSTRAINT dispositions_analysis_id_fkey FOREIGN KEY (analysis_id) REFERENCES public.analyses(id);
ALTER TABLE ONLY public.documents
    ADD CONSTRAINT documents_analysis_id_fkey FOREIGN KEY (analysis_id) REFERENCES public.analyses(id);
ALTER TABLE ONLY public.expired_images
    ADD CONSTRAINT expired_images_study_instance_uid_fkey FOREIGN KEY (study_instance_uid) REFERENCES public.studies(study_instance_uid);
ALTER TABLE ONLY public.figures
    ADD CONSTRAINT figures_analysis_id_fkey FOREIGN KEY (analysis_id) REFERENCES public.analyses(id);
ALTER TABLE ONLY public.instances
    ADD CONSTRAINT instances_study_instance_uid_fkey FOREIGN KEY (study_instance_uid) REFERENCES public.studies(study_instance_uid);
ALTER TABLE ONLY public.reviews
    ADD CONSTRAINT reviews_analysis_id_fkey FOREIGN KEY (analysis_id) REFERENCES public.analyses(id);
