BEGIN TRANSACTION;
CREATE TABLE accounts (
	username VARCHAR(64) NOT NULL, 
	display_name VARCHAR(128) NOT NULL, 
	role VARCHAR(16) NOT NULL, 
	password_hash VARCHAR(256) NOT NULL, 
	PRIMARY KEY (username)
);
INSERT INTO "accounts" VALUES('bs.an','BS. An','reviewer','$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA');
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE analyses (
	id VARCHAR(64) NOT NULL, 
	study_instance_uid VARCHAR(64) NOT NULL, 
	revision INTEGER NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	priority INTEGER NOT NULL, 
	model TEXT, 
	model_name VARCHAR(128), 
	model_version VARCHAR(64), 
	attempts INTEGER NOT NULL, 
	due_at DATETIME NOT NULL, 
	step VARCHAR(32) NOT NULL, 
	fraction FLOAT NOT NULL, 
	error TEXT NOT NULL, 
	result TEXT, 
	created_at DATETIME NOT NULL, 
	started_at DATETIME, 
	finished_at DATETIME, 
	PRIMARY KEY (id), 
	FOREIGN KEY(study_instance_uid) REFERENCES studies (study_instance_uid), 
	CONSTRAINT one_analysis_per_revision UNIQUE (study_instance_uid, revision)
);
INSERT INTO "analyses" VALUES('1a3a97a0e86b4dd6ae2f1a484fd5f7ed','1.1',1,'succeeded',2,'{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}','phoi-lung-nodule','1.0.0',0,'2026-01-02 03:04:07.000000','',1.0,'','{"identity": {"study_instance_uid": "1.1", "series_instance_uid": "1.1.9", "input_digest": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "model": {"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}, "revision": 1}, "outcome": "positive", "nodules": [{"number": 1, "tracking_uid": "2.25.1", "finding": {"center_lps_mm": [56.0, 86.0, -116.0], "probability": 0.93, "long_axis_mm": 14.0, "short_axis_mm": 10.0, "mean_diameter_mm": 12.0, "volume_mm3": 900.0, "attenuation": "solid", "solid_diameter_mm": null, "mean_hu": 31.0, "side": "left", "lobe": null, "long_axis_lps_mm": [[49.0, 86.0, -116.0], [63.0, 86.0, -116.0]], "short_axis_lps_mm": [[56.0, 81.0, -116.0], [56.0, 91.0, -116.0]], "mask": {"offset": [1, 2, 3], "shape": [2, 3, 4], "bits": "////"}}, "size_class": {"lung_rads": "4A", "fleischner": ">8 mm", "basis": "mean_diameter"}}], "suggested_priority": "urgent", "coverage": {"apex": true, "base": true, "volume_ml": 4200.0}, "reason": null, "detail": "", "series_reason": "the only series", "analysed_at": "2026-01-02T03:04:05+00:00", "timing_s": {}, "passed_over": {}, "runtime": ""}','2026-01-02 03:04:07.000000','2026-01-02 03:04:09.000000','2026-01-02 03:04:16.000000');
INSERT INTO "analyses" VALUES('1505e55356dd4b8682222cc6c4246853','1.2',1,'succeeded',2,'{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}','phoi-lung-nodule','1.0.0',0,'2026-01-02 03:05:24.000000','',1.0,'','{"identity": {"study_instance_uid": "1.2", "series_instance_uid": "1.2.9", "input_digest": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "model": {"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}, "revision": 1}, "outcome": "positive", "nodules": [{"number": 1, "tracking_uid": "2.25.1", "finding": {"center_lps_mm": [56.0, 86.0, -116.0], "probability": 0.93, "long_axis_mm": 14.0, "short_axis_mm": 10.0, "mean_diameter_mm": 12.0, "volume_mm3": 900.0, "attenuation": "solid", "solid_diameter_mm": null, "mean_hu": 31.0, "side": "left", "lobe": null, "long_axis_lps_mm": [[49.0, 86.0, -116.0], [63.0, 86.0, -116.0]], "short_axis_lps_mm": [[56.0, 81.0, -116.0], [56.0, 91.0, -116.0]], "mask": {"offset": [1, 2, 3], "shape": [2, 3, 4], "bits": "////"}}, "size_class": {"lung_rads": "4A", "fleischner": ">8 mm", "basis": "mean_diameter"}}], "suggested_priority": "urgent", "coverage": {"apex": true, "base": true, "volume_ml": 4200.0}, "reason": null, "detail": "", "series_reason": "the only series", "analysed_at": "2026-01-02T03:04:05+00:00", "timing_s": {}, "passed_over": {}, "runtime": ""}','2026-01-02 03:05:24.000000','2026-01-02 03:05:26.000000','2026-01-02 03:05:33.000000');
INSERT INTO "analyses" VALUES('d98ffa7e6ff541c697edbbc1962ca8be','1.3',1,'superseded',2,'{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}','phoi-lung-nodule','1.0.0',0,'2026-01-02 03:05:37.000000','',1.0,'','{"identity": {"study_instance_uid": "1.3", "series_instance_uid": "1.3.9", "input_digest": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "model": {"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}, "revision": 1}, "outcome": "positive", "nodules": [{"number": 1, "tracking_uid": "2.25.1", "finding": {"center_lps_mm": [56.0, 86.0, -116.0], "probability": 0.93, "long_axis_mm": 14.0, "short_axis_mm": 10.0, "mean_diameter_mm": 12.0, "volume_mm3": 900.0, "attenuation": "solid", "solid_diameter_mm": null, "mean_hu": 31.0, "side": "left", "lobe": null, "long_axis_lps_mm": [[49.0, 86.0, -116.0], [63.0, 86.0, -116.0]], "short_axis_lps_mm": [[56.0, 81.0, -116.0], [56.0, 91.0, -116.0]], "mask": {"offset": [1, 2, 3], "shape": [2, 3, 4], "bits": "////"}}, "size_class": {"lung_rads": "4A", "fleischner": ">8 mm", "basis": "mean_diameter"}}], "suggested_priority": "urgent", "coverage": {"apex": true, "base": true, "volume_ml": 4200.0}, "reason": null, "detail": "", "series_reason": "the only series", "analysed_at": "2026-01-02T03:04:05+00:00", "timing_s": {}, "passed_over": {}, "runtime": ""}','2026-01-02 03:05:37.000000','2026-01-02 03:05:39.000000','2026-01-02 03:05:46.000000');
INSERT INTO "analyses" VALUES('34b85c7eb23144e9aad2a429303c668a','1.3',2,'queued',1,NULL,NULL,NULL,0,'2026-01-02 03:05:49.000000','',0.0,'',NULL,'2026-01-02 03:05:49.000000',NULL,NULL);
INSERT INTO "analyses" VALUES('23620ac3b8b340b48358c53b7abc3834','1.5',1,'running',0,'{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}','phoi-lung-nodule','1.0.0',0,'2026-01-02 03:05:52.000000','',0.0,'',NULL,'2026-01-02 03:05:52.000000','2026-01-02 03:05:52.000000',NULL);
INSERT INTO "analyses" VALUES('892ba574afad4f8cbc37613c3bc60521','1.4',1,'queued',2,NULL,NULL,NULL,0,'2026-01-02 03:05:54.000000','',0.0,'',NULL,'2026-01-02 03:05:54.000000',NULL,NULL);
CREATE TABLE audit (
	id INTEGER NOT NULL, 
	at DATETIME NOT NULL, 
	username VARCHAR(64) NOT NULL, 
	action VARCHAR(64) NOT NULL, 
	study_instance_uid VARCHAR(64), 
	detail TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "audit" VALUES(1,'2026-01-02 03:04:18.000000','bs.an','decide','1.1','rejected');
INSERT INTO "audit" VALUES(2,'2026-01-02 03:04:21.000000','bs.an','undo','1.1','');
INSERT INTO "audit" VALUES(3,'2026-01-02 03:04:21.000000','bs.an','decide','1.1','accepted');
INSERT INTO "audit" VALUES(4,'2026-01-02 03:05:21.000000','bs.an','sign','1.1','');
INSERT INTO "audit" VALUES(5,'2026-01-02 03:05:55.000000','bs.an','pause',NULL,'destination:pacs');
INSERT INTO "audit" VALUES(6,'2026-01-02 03:05:55.000000','bs.an','report_problem',NULL,'');
CREATE TABLE deliveries (
	id INTEGER NOT NULL, 
	document_id INTEGER NOT NULL, 
	study_instance_uid VARCHAR(64), 
	destination VARCHAR(32) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	attempts INTEGER NOT NULL, 
	failed_tries INTEGER NOT NULL, 
	due_at DATETIME NOT NULL, 
	last_error TEXT NOT NULL, 
	created_at DATETIME NOT NULL, 
	updated_at DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(document_id) REFERENCES documents (id)
);
INSERT INTO "deliveries" VALUES(1,1,'1.1','pacs','delivered',1,0,'2026-01-02 03:04:46.000000','','2026-01-02 03:04:16.000000','2026-01-02 03:04:16.000000');
INSERT INTO "deliveries" VALUES(2,2,'1.1','pacs','delivered',1,0,'2026-01-02 03:04:47.000000','','2026-01-02 03:04:16.000000','2026-01-02 03:04:17.000000');
INSERT INTO "deliveries" VALUES(3,3,'1.1','pacs','delivered',1,0,'2026-01-02 03:05:51.000000','','2026-01-02 03:05:21.000000','2026-01-02 03:05:21.000000');
INSERT INTO "deliveries" VALUES(4,4,'1.2','pacs','dead',1,1,'2026-01-02 03:06:03.000000','no room','2026-01-02 03:05:33.000000','2026-01-02 03:05:33.000000');
INSERT INTO "deliveries" VALUES(5,5,'1.2','pacs','pending',1,1,'2026-01-02 03:06:04.000000','no route','2026-01-02 03:05:33.000000','2026-01-02 03:05:34.000000');
CREATE TABLE dispositions (
	id INTEGER NOT NULL, 
	analysis_id VARCHAR(64) NOT NULL, 
	undoes INTEGER, 
	reviewer VARCHAR(64) NOT NULL, 
	at DATETIME NOT NULL, 
	disposition TEXT NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(analysis_id) REFERENCES analyses (id)
);
INSERT INTO "dispositions" VALUES(1,'1a3a97a0e86b4dd6ae2f1a484fd5f7ed',NULL,'bs.an','2026-01-02 03:04:18.000000','{"tracking_uid": "2.25.1", "verdict": "rejected", "reviewer": "bs.an", "decided_at": "2026-01-02T03:04:18+00:00", "reason": "vessel", "correction": {"center_lps_mm": null, "mean_diameter_mm": null}}');
INSERT INTO "dispositions" VALUES(2,'1a3a97a0e86b4dd6ae2f1a484fd5f7ed',1,'bs.an','2026-01-02 03:04:21.000000','{"tracking_uid": "2.25.1", "verdict": "rejected", "reviewer": "bs.an", "decided_at": "2026-01-02T03:04:18+00:00", "reason": "vessel", "correction": {"center_lps_mm": null, "mean_diameter_mm": null}}');
INSERT INTO "dispositions" VALUES(3,'1a3a97a0e86b4dd6ae2f1a484fd5f7ed',NULL,'bs.an','2026-01-02 03:04:21.000000','{"tracking_uid": "2.25.1", "verdict": "accepted", "reviewer": "bs.an", "decided_at": "2026-01-02T03:04:21+00:00", "reason": "", "correction": {"center_lps_mm": null, "mean_diameter_mm": null}}');
CREATE TABLE documents (
	id INTEGER NOT NULL, 
	analysis_id VARCHAR(64), 
	study_instance_uid VARCHAR(64), 
	revision INTEGER NOT NULL, 
	kind VARCHAR(8) NOT NULL, 
	identity VARCHAR(128) NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	content BLOB NOT NULL, 
	created_at DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(analysis_id) REFERENCES analyses (id)
);
INSERT INTO "documents" VALUES(1,'1a3a97a0e86b4dd6ae2f1a484fd5f7ed','1.1',1,'seg','1.1-1-seg','preliminary',X'636F6E74656E74206F6620312E312D312D736567','2026-01-02 03:04:16.000000');
INSERT INTO "documents" VALUES(2,'1a3a97a0e86b4dd6ae2f1a484fd5f7ed','1.1',1,'sr','1.1-1-sr','preliminary',X'636F6E74656E74206F6620312E312D312D7372','2026-01-02 03:04:16.000000');
INSERT INTO "documents" VALUES(3,'1a3a97a0e86b4dd6ae2f1a484fd5f7ed','1.1',1,'sr','1.1-final','final',X'636F6E74656E74206F6620312E312D66696E616C','2026-01-02 03:05:21.000000');
INSERT INTO "documents" VALUES(4,'1505e55356dd4b8682222cc6c4246853','1.2',1,'seg','1.2-1-seg','preliminary',X'636F6E74656E74206F6620312E322D312D736567','2026-01-02 03:05:33.000000');
INSERT INTO "documents" VALUES(5,'1505e55356dd4b8682222cc6c4246853','1.2',1,'sr','1.2-1-sr','preliminary',X'636F6E74656E74206F6620312E322D312D7372','2026-01-02 03:05:33.000000');
INSERT INTO "documents" VALUES(6,'d98ffa7e6ff541c697edbbc1962ca8be','1.3',1,'seg','1.3-1-seg','preliminary',X'636F6E74656E74206F6620312E332D312D736567','2026-01-02 03:05:46.000000');
INSERT INTO "documents" VALUES(7,'d98ffa7e6ff541c697edbbc1962ca8be','1.3',1,'sr','1.3-1-sr','preliminary',X'636F6E74656E74206F6620312E332D312D7372','2026-01-02 03:05:46.000000');
CREATE TABLE facts (
	"key" VARCHAR(128) NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "facts" VALUES('model','{"a": 1}');
INSERT INTO "facts" VALUES('usage','1');
CREATE TABLE instances (
	sop_instance_uid VARCHAR(64) NOT NULL, 
	study_instance_uid VARCHAR(64) NOT NULL, 
	series_instance_uid VARCHAR(64) NOT NULL, 
	sop_class_uid VARCHAR(64) NOT NULL, 
	transfer_syntax_uid VARCHAR(64) NOT NULL, 
	path TEXT NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	size BIGINT NOT NULL, 
	modality VARCHAR(16) NOT NULL, 
	calling_ae_title VARCHAR(16) NOT NULL, 
	received_at DATETIME NOT NULL, 
	PRIMARY KEY (sop_instance_uid), 
	FOREIGN KEY(study_instance_uid) REFERENCES studies (study_instance_uid)
);
INSERT INTO "instances" VALUES('1.1.9.1','1.1','1.1.9','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','aa/1.1-1.dcm','00',1000,'CT','PACS','2026-01-02 03:04:05.000000');
INSERT INTO "instances" VALUES('1.1.9.2','1.1','1.1.9','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','aa/1.1-2.dcm','00',1000,'CT','PACS','2026-01-02 03:04:05.000000');
INSERT INTO "instances" VALUES('1.2.9.1','1.2','1.2.9','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','aa/1.2-1.dcm','00',1000,'CT','PACS','2026-01-02 03:04:05.000000');
INSERT INTO "instances" VALUES('1.2.9.2','1.2','1.2.9','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','aa/1.2-2.dcm','00',1000,'CT','PACS','2026-01-02 03:04:05.000000');
INSERT INTO "instances" VALUES('1.3.9.1','1.3','1.3.9','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','aa/1.3-1.dcm','00',1000,'CT','PACS','2026-01-02 03:04:05.000000');
INSERT INTO "instances" VALUES('1.3.9.2','1.3','1.3.9','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','aa/1.3-2.dcm','00',1000,'CT','PACS','2026-01-02 03:04:05.000000');
INSERT INTO "instances" VALUES('1.3.9.3','1.3','1.3.9','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','aa/1.3-3.dcm','00',1000,'CT','PACS','2026-01-02 03:04:05.000000');
INSERT INTO "instances" VALUES('1.5.9.1','1.5','1.5.9','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','aa/1.5-1.dcm','00',1000,'CT','PACS','2026-01-02 03:04:05.000000');
INSERT INTO "instances" VALUES('1.5.9.2','1.5','1.5.9','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','aa/1.5-2.dcm','00',1000,'CT','PACS','2026-01-02 03:04:05.000000');
INSERT INTO "instances" VALUES('1.4.9.1','1.4','1.4.9','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','aa/1.4-1.dcm','00',1000,'CT','PACS','2026-01-02 03:04:05.000000');
INSERT INTO "instances" VALUES('1.4.9.2','1.4','1.4.9','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','aa/1.4-2.dcm','00',1000,'CT','PACS','2026-01-02 03:04:05.000000');
INSERT INTO "instances" VALUES('1.6.9.1','1.6','1.6.9','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','aa/1.6-1.dcm','00',1000,'CT','PACS','2026-01-02 03:04:05.000000');
CREATE TABLE pauses (
	target VARCHAR(160) NOT NULL, 
	username VARCHAR(64) NOT NULL, 
	at DATETIME NOT NULL, 
	PRIMARY KEY (target)
);
INSERT INTO "pauses" VALUES('destination:pacs','bs.an','2026-01-02 03:05:55.000000');
CREATE TABLE problems (
	id INTEGER NOT NULL, 
	at DATETIME NOT NULL, 
	username VARCHAR(64) NOT NULL, 
	text TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "problems" VALUES(1,'2026-01-02 03:05:55.000000','bs.an','chậm quá');
CREATE TABLE reviews (
	analysis_id VARCHAR(64) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	signed TEXT, 
	signed_at DATETIME, 
	PRIMARY KEY (analysis_id), 
	FOREIGN KEY(analysis_id) REFERENCES analyses (id)
);
INSERT INTO "reviews" VALUES('1a3a97a0e86b4dd6ae2f1a484fd5f7ed','signed','{"reviewer": "bs.an", "reviewer_name": "BS. An", "signed_at": "2026-01-02T03:05:21+00:00", "dispositions": [{"tracking_uid": "2.25.1", "verdict": "accepted", "reviewer": "bs.an", "decided_at": "2026-01-02T03:04:21+00:00", "reason": "", "correction": {"center_lps_mm": null, "mean_diameter_mm": null}}]}','2026-01-02 03:05:21.000000');
INSERT INTO "reviews" VALUES('1505e55356dd4b8682222cc6c4246853','open',NULL,NULL);
INSERT INTO "reviews" VALUES('d98ffa7e6ff541c697edbbc1962ca8be','superseded',NULL,NULL);
CREATE TABLE studies (
	study_instance_uid VARCHAR(64) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	header TEXT NOT NULL, 
	first_received_at DATETIME NOT NULL, 
	last_received_at DATETIME NOT NULL, 
	PRIMARY KEY (study_instance_uid)
);
INSERT INTO "studies" VALUES('1.1','complete','{"study_instance_uid": "1.1", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}','2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000');
INSERT INTO "studies" VALUES('1.2','complete','{"study_instance_uid": "1.2", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}','2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000');
INSERT INTO "studies" VALUES('1.3','complete','{"study_instance_uid": "1.3", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}','2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000');
INSERT INTO "studies" VALUES('1.5','complete','{"study_instance_uid": "1.5", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}','2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000');
INSERT INTO "studies" VALUES('1.4','complete','{"study_instance_uid": "1.4", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}','2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000');
INSERT INTO "studies" VALUES('1.6','receiving','{"study_instance_uid": "1.6", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}','2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000');
CREATE INDEX ix_studies_last_received_at ON studies (last_received_at);
CREATE INDEX ix_studies_state ON studies (state);
CREATE INDEX ix_analyses_state ON analyses (state);
CREATE INDEX ix_instances_study_instance_uid ON instances (study_instance_uid);
CREATE INDEX ix_dispositions_analysis_id ON dispositions (analysis_id);
CREATE INDEX ix_documents_analysis_id ON documents (analysis_id);
CREATE INDEX ix_documents_study_instance_uid ON documents (study_instance_uid);
CREATE INDEX ix_deliveries_document_id ON deliveries (document_id);
CREATE INDEX ix_deliveries_study_instance_uid ON deliveries (study_instance_uid);
CREATE INDEX lane ON deliveries (destination, state);
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE TRIGGER dispositions_no_update BEFORE UPDATE ON dispositions BEGIN SELECT RAISE(ABORT, 'dispositions is append-only'); END;
CREATE TRIGGER dispositions_no_delete BEFORE DELETE ON dispositions BEGIN SELECT RAISE(ABORT, 'dispositions is append-only'); END;
COMMIT;
