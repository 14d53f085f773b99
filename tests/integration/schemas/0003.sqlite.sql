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
INSERT INTO "alembic_version" VALUES('0003');
CREATE TABLE "analyses" (
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
	state_since DATETIME NOT NULL, 
	completeness VARCHAR(16), 
	images VARCHAR(64), 
	claims INTEGER DEFAULT 0 NOT NULL, 
	turn_at DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT one_analysis_per_revision UNIQUE (study_instance_uid, revision), 
	FOREIGN KEY(study_instance_uid) REFERENCES studies (study_instance_uid)
);
INSERT INTO "analyses" VALUES('be46e83011c3460e8d31b44cdca6dfb1','1.1',1,'succeeded',1,'{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}','phoi-lung-nodule','1.0.0',0,'2026-01-02 03:04:07.000000','read',1.0,'','{"identity": {"study_instance_uid": "1.1", "series_instance_uid": "1.1.9", "input_digest": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "model": {"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}, "revision": 1}, "outcome": "positive", "nodules": [{"number": 1, "tracking_uid": "2.25.1", "finding": {"center_lps_mm": [56.0, 86.0, -116.0], "probability": 0.93, "long_axis_mm": 14.0, "short_axis_mm": 10.0, "mean_diameter_mm": 12.0, "volume_mm3": 900.0, "attenuation": "solid", "solid_diameter_mm": null, "mean_hu": 31.0, "side": "left", "lobe": null, "long_axis_lps_mm": [[49.0, 86.0, -116.0], [63.0, 86.0, -116.0]], "short_axis_lps_mm": [[56.0, 81.0, -116.0], [56.0, 91.0, -116.0]], "mask": {"offset": [1, 2, 3], "shape": [2, 3, 4], "bits": "////"}}, "size_class": {"lung_rads": "4A", "fleischner": ">8 mm", "basis": "mean_diameter"}}], "suggested_priority": "urgent", "coverage": {"apex": true, "base": true, "volume_ml": 4200.0}, "reason": null, "detail": "", "series_reason": "the only series", "analysed_at": "2026-01-02T03:04:05+00:00", "timing_s": {}, "passed_over": {}, "runtime": "", "completeness": "geometry"}','2026-01-02 03:04:07.000000','2026-01-02 03:04:07.000000','2026-01-02 03:04:13.000000','2026-01-02 03:04:13.000000','confirmed','0cfa1b0be463e05d12a6bfc9cd18fa32c29a22db43dab14b5cfe3ebed77e232a',1,'2026-01-03 03:04:07.000000');
INSERT INTO "analyses" VALUES('0a4291472f994d7c86ae0a2cd299f1c0','1.2',1,'succeeded',1,'{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}','phoi-lung-nodule','1.0.0',0,'2026-01-02 03:04:27.000000','read',1.0,'','{"identity": {"study_instance_uid": "1.2", "series_instance_uid": "1.2.9", "input_digest": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "model": {"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}, "revision": 1}, "outcome": "positive", "nodules": [{"number": 1, "tracking_uid": "2.25.1", "finding": {"center_lps_mm": [56.0, 86.0, -116.0], "probability": 0.93, "long_axis_mm": 14.0, "short_axis_mm": 10.0, "mean_diameter_mm": 12.0, "volume_mm3": 900.0, "attenuation": "solid", "solid_diameter_mm": null, "mean_hu": 31.0, "side": "left", "lobe": null, "long_axis_lps_mm": [[49.0, 86.0, -116.0], [63.0, 86.0, -116.0]], "short_axis_lps_mm": [[56.0, 81.0, -116.0], [56.0, 91.0, -116.0]], "mask": {"offset": [1, 2, 3], "shape": [2, 3, 4], "bits": "////"}}, "size_class": {"lung_rads": "4A", "fleischner": ">8 mm", "basis": "mean_diameter"}}], "suggested_priority": "urgent", "coverage": {"apex": true, "base": true, "volume_ml": 4200.0}, "reason": null, "detail": "", "series_reason": "the only series", "analysed_at": "2026-01-02T03:04:05+00:00", "timing_s": {}, "passed_over": {}, "runtime": "", "completeness": "geometry"}','2026-01-02 03:04:27.000000','2026-01-02 03:04:27.000000','2026-01-02 03:04:33.000000','2026-01-02 03:04:33.000000','unconfirmed','7ceb2f429adf8846e0dc09f97597d4ff7dba7fe481b58b81774b3e947173cbec',1,'2026-01-03 03:04:27.000000');
INSERT INTO "analyses" VALUES('b6ff09ba96664e56841fb5fa306cc02a','1.4',1,'succeeded',1,'{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}','phoi-lung-nodule','1.0.0',0,'2026-01-02 03:04:38.000000','read',1.0,'','{"identity": {"study_instance_uid": "1.4", "series_instance_uid": "1.4.9", "input_digest": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "model": {"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}, "revision": 1}, "outcome": "positive", "nodules": [{"number": 1, "tracking_uid": "2.25.1", "finding": {"center_lps_mm": [56.0, 86.0, -116.0], "probability": 0.93, "long_axis_mm": 14.0, "short_axis_mm": 10.0, "mean_diameter_mm": 12.0, "volume_mm3": 900.0, "attenuation": "solid", "solid_diameter_mm": null, "mean_hu": 31.0, "side": "left", "lobe": null, "long_axis_lps_mm": [[49.0, 86.0, -116.0], [63.0, 86.0, -116.0]], "short_axis_lps_mm": [[56.0, 81.0, -116.0], [56.0, 91.0, -116.0]], "mask": {"offset": [1, 2, 3], "shape": [2, 3, 4], "bits": "////"}}, "size_class": {"lung_rads": "4A", "fleischner": ">8 mm", "basis": "mean_diameter"}}], "suggested_priority": "urgent", "coverage": {"apex": true, "base": true, "volume_ml": 4200.0}, "reason": null, "detail": "", "series_reason": "the only series", "analysed_at": "2026-01-02T03:04:05+00:00", "timing_s": {}, "passed_over": {}, "runtime": "", "completeness": "geometry"}','2026-01-02 03:04:38.000000','2026-01-02 03:04:38.000000','2026-01-02 03:04:44.000000','2026-01-02 03:04:44.000000','geometry','ea3e2a4d174439359b77267323040ea2fd621d9bce80fd642b2d724e5a1bffe8',1,'2026-01-03 03:04:38.000000');
INSERT INTO "analyses" VALUES('316d356e03424f1c9c15ee437398d481','1.3',1,'superseded',1,'{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}','phoi-lung-nodule','1.0.0',0,'2026-01-02 03:04:49.000000','read',1.0,'','{"identity": {"study_instance_uid": "1.3", "series_instance_uid": "1.3.9", "input_digest": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "model": {"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}, "revision": 1}, "outcome": "positive", "nodules": [{"number": 1, "tracking_uid": "2.25.1", "finding": {"center_lps_mm": [56.0, 86.0, -116.0], "probability": 0.93, "long_axis_mm": 14.0, "short_axis_mm": 10.0, "mean_diameter_mm": 12.0, "volume_mm3": 900.0, "attenuation": "solid", "solid_diameter_mm": null, "mean_hu": 31.0, "side": "left", "lobe": null, "long_axis_lps_mm": [[49.0, 86.0, -116.0], [63.0, 86.0, -116.0]], "short_axis_lps_mm": [[56.0, 81.0, -116.0], [56.0, 91.0, -116.0]], "mask": {"offset": [1, 2, 3], "shape": [2, 3, 4], "bits": "////"}}, "size_class": {"lung_rads": "4A", "fleischner": ">8 mm", "basis": "mean_diameter"}}], "suggested_priority": "urgent", "coverage": {"apex": true, "base": true, "volume_ml": 4200.0}, "reason": null, "detail": "", "series_reason": "the only series", "analysed_at": "2026-01-02T03:04:05+00:00", "timing_s": {}, "passed_over": {}, "runtime": "", "completeness": "geometry"}','2026-01-02 03:04:49.000000','2026-01-02 03:04:49.000000','2026-01-02 03:04:55.000000','2026-01-02 03:04:56.000000',NULL,'a0bdad078acadfb9a11539d44da204f25093b215d4916c90e27767ac4097a76f',1,'2026-01-03 03:04:49.000000');
INSERT INTO "analyses" VALUES('8bb46fa43f284494b41bd29b542df628','1.3',2,'queued',1,'{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}','phoi-lung-nodule','1.0.0',0,'2026-01-02 03:05:59.000000','',0.0,'no worker answers',NULL,'2026-01-02 03:04:56.000000','2026-01-02 03:04:59.000000',NULL,'2026-01-02 03:04:59.000000',NULL,'94f067cca13c0c02bffa79dc31baddc825f92193a07f18c81f9d864596eff26c',1,'2026-01-03 03:04:56.000000');
INSERT INTO "analyses" VALUES('0a76d172e34f4b84b7817af28efb4632','1.8',1,'superseded',1,'{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}','phoi-lung-nodule','1.0.0',0,'2026-01-02 03:04:59.000000','',0.0,'',NULL,'2026-01-02 03:04:59.000000','2026-01-02 03:04:59.000000',NULL,'2026-01-02 03:05:00.000000','confirmed','feafd640b14ac654fb739927d5294f14851364333cb8d1cf7a44546ff26b210d',1,'2026-01-03 03:04:59.000000');
INSERT INTO "analyses" VALUES('b8557b6bdf634687baf00fddb23f6ec8','1.5',1,'running',0,'{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}','phoi-lung-nodule','1.0.0',0,'2026-01-02 03:05:03.000000','detect',0.5,'',NULL,'2026-01-02 03:05:03.000000','2026-01-02 03:05:03.000000',NULL,'2026-01-02 03:05:03.000000','confirmed','167ed55853b73d36cb8f6b17d3ddcc03c54059e0a3fafc38bfea85796be47fd3',1,'2026-01-02 03:05:03.000000');
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
INSERT INTO "audit" VALUES(2,'2026-01-02 03:04:19.000000','bs.an','undo','1.1','');
INSERT INTO "audit" VALUES(3,'2026-01-02 03:04:20.000000','bs.an','decide','1.1','modified');
INSERT INTO "audit" VALUES(4,'2026-01-02 03:04:21.000000','bs.an','sign','1.1','');
INSERT INTO "audit" VALUES(5,'2026-01-02 03:05:07.000000','bs.an','pause',NULL,'destination:pacs');
INSERT INTO "audit" VALUES(6,'2026-01-02 03:05:07.000000','bs.an','report_problem',NULL,'');
CREATE TABLE commitment_requests (
	transaction_uid VARCHAR(64) NOT NULL, 
	ae_title VARCHAR(16) NOT NULL, 
	content TEXT NOT NULL, 
	asked_at DATETIME NOT NULL, 
	due_at DATETIME NOT NULL, 
	PRIMARY KEY (transaction_uid, ae_title)
);
INSERT INTO "commitment_requests" VALUES('1.9.2','PACS','{"transaction_uid": "1.9.2", "ae_title": "PACS", "references": [{"sop_class_uid": "1.2.840.10008.5.1.4.1.1.2", "sop_instance_uid": "1.1.9.1"}], "attempts": 0}','2026-01-02 03:04:25.000000','2026-01-02 03:04:25.000000');
CREATE TABLE commitments (
	id INTEGER NOT NULL, 
	delivery_id INTEGER NOT NULL, 
	attempts INTEGER NOT NULL, 
	archive VARCHAR(32) NOT NULL, 
	transaction_uid VARCHAR(64) NOT NULL, 
	sop_instance_uid VARCHAR(64) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	asked_at DATETIME NOT NULL, 
	answered_at DATETIME, 
	PRIMARY KEY (id), 
	FOREIGN KEY(delivery_id) REFERENCES deliveries (id)
);
INSERT INTO "commitments" VALUES(1,1,1,'pacs','1.9.1','1.1.1.1','committed','2026-01-02 03:04:23.000000','2026-01-02 03:04:24.000000');
INSERT INTO "commitments" VALUES(2,3,1,'pacs','1.9.1','1.1.1.2','committed','2026-01-02 03:04:23.000000','2026-01-02 03:04:24.000000');
INSERT INTO "commitments" VALUES(3,5,1,'pacs','1.9.1','1.1.final','committed','2026-01-02 03:04:23.000000','2026-01-02 03:04:24.000000');
CREATE TABLE damages (
	id INTEGER NOT NULL, 
	study_instance_uid VARCHAR(64) NOT NULL, 
	sop_instance_uid VARCHAR(64) NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	found_at DATETIME NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "damages" VALUES(1,'1.8','1.8.9.2','00','changed','2026-01-02 03:05:00.000000');
CREATE TABLE "deliveries" (
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
	queued_at DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(document_id) REFERENCES documents (id)
);
INSERT INTO "deliveries" VALUES(1,1,'1.1','pacs','delivered',1,0,'2026-01-02 03:04:44.000000','','2026-01-02 03:04:13.000000','2026-01-02 03:04:14.000000','2026-01-02 03:04:13.000000');
INSERT INTO "deliveries" VALUES(2,1,'1.1','emr','delivered',1,0,'2026-01-02 03:04:46.000000','','2026-01-02 03:04:13.000000','2026-01-02 03:04:16.000000','2026-01-02 03:04:13.000000');
INSERT INTO "deliveries" VALUES(3,2,'1.1','pacs','delivered',1,0,'2026-01-02 03:04:45.000000','','2026-01-02 03:04:13.000000','2026-01-02 03:04:15.000000','2026-01-02 03:04:13.000000');
INSERT INTO "deliveries" VALUES(4,2,'1.1','emr','delivered',1,0,'2026-01-02 03:04:47.000000','','2026-01-02 03:04:13.000000','2026-01-02 03:04:17.000000','2026-01-02 03:04:13.000000');
INSERT INTO "deliveries" VALUES(5,3,'1.1','pacs','delivered',1,0,'2026-01-02 03:04:52.000000','','2026-01-02 03:04:21.000000','2026-01-02 03:04:22.000000','2026-01-02 03:04:21.000000');
INSERT INTO "deliveries" VALUES(6,4,'1.2','pacs','dead',1,1,'2026-01-02 03:05:04.000000','no room','2026-01-02 03:04:33.000000','2026-01-02 03:04:34.000000','2026-01-02 03:04:33.000000');
INSERT INTO "deliveries" VALUES(7,4,'1.2','emr','pending',1,1,'2026-01-02 03:05:05.000000','no route','2026-01-02 03:04:33.000000','2026-01-02 03:04:35.000000','2026-01-02 03:04:33.000000');
INSERT INTO "deliveries" VALUES(8,5,'1.2','pacs','pending',0,0,'2026-01-02 03:04:33.000000','','2026-01-02 03:04:33.000000','2026-01-02 03:04:33.000000','2026-01-02 03:04:33.000000');
INSERT INTO "deliveries" VALUES(9,5,'1.2','emr','pending',0,0,'2026-01-02 03:04:33.000000','','2026-01-02 03:04:33.000000','2026-01-02 03:04:33.000000','2026-01-02 03:04:33.000000');
INSERT INTO "deliveries" VALUES(10,6,'1.4','archive','delivered',1,0,'2026-01-02 03:05:15.000000','','2026-01-02 03:04:44.000000','2026-01-02 03:04:45.000000','2026-01-02 03:04:44.000000');
INSERT INTO "deliveries" VALUES(11,7,'1.4','archive','delivered',1,0,'2026-01-02 03:05:16.000000','','2026-01-02 03:04:44.000000','2026-01-02 03:04:46.000000','2026-01-02 03:04:44.000000');
INSERT INTO "deliveries" VALUES(12,8,'1.3','pacs','superseded',0,0,'2026-01-02 03:04:55.000000','','2026-01-02 03:04:55.000000','2026-01-02 03:04:56.000000','2026-01-02 03:04:55.000000');
INSERT INTO "deliveries" VALUES(13,8,'1.3','emr','superseded',0,0,'2026-01-02 03:04:55.000000','','2026-01-02 03:04:55.000000','2026-01-02 03:04:56.000000','2026-01-02 03:04:55.000000');
INSERT INTO "deliveries" VALUES(14,9,'1.3','pacs','superseded',0,0,'2026-01-02 03:04:55.000000','','2026-01-02 03:04:55.000000','2026-01-02 03:04:56.000000','2026-01-02 03:04:55.000000');
INSERT INTO "deliveries" VALUES(15,9,'1.3','emr','superseded',0,0,'2026-01-02 03:04:55.000000','','2026-01-02 03:04:55.000000','2026-01-02 03:04:56.000000','2026-01-02 03:04:55.000000');
INSERT INTO "deliveries" VALUES(16,10,NULL,'mlflow','pending',0,0,'2026-01-02 03:05:08.000000','','2026-01-02 03:05:08.000000','2026-01-02 03:05:08.000000','2026-01-02 03:05:08.000000');
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
INSERT INTO "dispositions" VALUES(1,'be46e83011c3460e8d31b44cdca6dfb1',NULL,'bs.an','2026-01-02 03:04:18.000000','{"tracking_uid": "2.25.1", "verdict": "rejected", "reviewer": "bs.an", "decided_at": "2026-01-02T03:04:18+00:00", "reason": "mạch máu", "correction": {"center_lps_mm": null, "mean_diameter_mm": null}}');
INSERT INTO "dispositions" VALUES(2,'be46e83011c3460e8d31b44cdca6dfb1',1,'bs.an','2026-01-02 03:04:19.000000','{"tracking_uid": "2.25.1", "verdict": "rejected", "reviewer": "bs.an", "decided_at": "2026-01-02T03:04:18+00:00", "reason": "mạch máu", "correction": {"center_lps_mm": null, "mean_diameter_mm": null}}');
INSERT INTO "dispositions" VALUES(3,'be46e83011c3460e8d31b44cdca6dfb1',NULL,'bs.an','2026-01-02 03:04:20.000000','{"tracking_uid": "2.25.1", "verdict": "modified", "reviewer": "bs.an", "decided_at": "2026-01-02T03:04:20+00:00", "reason": "", "correction": {"center_lps_mm": null, "mean_diameter_mm": 9.5}}');
CREATE TABLE documents (
	id INTEGER NOT NULL, 
	analysis_id VARCHAR(64), 
	study_instance_uid VARCHAR(64), 
	revision INTEGER NOT NULL, 
	kind VARCHAR(8) NOT NULL, 
	identity VARCHAR(128) NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	content BLOB NOT NULL, 
	created_at DATETIME NOT NULL, outdated BOOLEAN DEFAULT 0 NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(analysis_id) REFERENCES analyses (id)
);
INSERT INTO "documents" VALUES(1,'be46e83011c3460e8d31b44cdca6dfb1','1.1',1,'seg','1.1.1.1','preliminary',X'636F6E74656E74206F6620312E312E312E31','2026-01-02 03:04:13.000000',0);
INSERT INTO "documents" VALUES(2,'be46e83011c3460e8d31b44cdca6dfb1','1.1',1,'sr','1.1.1.2','preliminary',X'636F6E74656E74206F6620312E312E312E32','2026-01-02 03:04:13.000000',0);
INSERT INTO "documents" VALUES(3,'be46e83011c3460e8d31b44cdca6dfb1','1.1',1,'sr','1.1.final','final',X'636F6E74656E74206F6620312E312E66696E616C','2026-01-02 03:04:21.000000',0);
INSERT INTO "documents" VALUES(4,'0a4291472f994d7c86ae0a2cd299f1c0','1.2',1,'seg','1.2.1.1','preliminary',X'636F6E74656E74206F6620312E322E312E31','2026-01-02 03:04:33.000000',0);
INSERT INTO "documents" VALUES(5,'0a4291472f994d7c86ae0a2cd299f1c0','1.2',1,'sr','1.2.1.2','preliminary',X'636F6E74656E74206F6620312E322E312E32','2026-01-02 03:04:33.000000',0);
INSERT INTO "documents" VALUES(6,'b6ff09ba96664e56841fb5fa306cc02a','1.4',1,'seg','1.4.1.1','preliminary',X'636F6E74656E74206F6620312E342E312E31','2026-01-02 03:04:44.000000',0);
INSERT INTO "documents" VALUES(7,'b6ff09ba96664e56841fb5fa306cc02a','1.4',1,'sr','1.4.1.2','preliminary',X'636F6E74656E74206F6620312E342E312E32','2026-01-02 03:04:44.000000',0);
INSERT INTO "documents" VALUES(8,'316d356e03424f1c9c15ee437398d481','1.3',1,'seg','1.3.1.1','preliminary',X'636F6E74656E74206F6620312E332E312E31','2026-01-02 03:04:55.000000',0);
INSERT INTO "documents" VALUES(9,'316d356e03424f1c9c15ee437398d481','1.3',1,'sr','1.3.1.2','preliminary',X'636F6E74656E74206F6620312E332E312E32','2026-01-02 03:04:55.000000',0);
INSERT INTO "documents" VALUES(10,NULL,NULL,0,'usage','usage-1','final',X'636F6E74656E74206F662075736167652D31','2026-01-02 03:05:08.000000',0);
CREATE TABLE expired_images (
	study_instance_uid VARCHAR(64) NOT NULL, 
	images TEXT NOT NULL, 
	late BOOLEAN NOT NULL, 
	PRIMARY KEY (study_instance_uid), 
	FOREIGN KEY(study_instance_uid) REFERENCES studies (study_instance_uid)
);
INSERT INTO "expired_images" VALUES('1.4','1.4.9 1.4.9.1
1.4.9 1.4.9.2',0);
CREATE TABLE facts (
	"key" VARCHAR(128) NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "facts" VALUES('model','{"a": 1}');
INSERT INTO "facts" VALUES('usage','1');
CREATE TABLE figures (
	analysis_id VARCHAR(64) NOT NULL, 
	model TEXT, 
	outcome VARCHAR(16), 
	ended_at DATETIME, 
	receive_to_result_s FLOAT, 
	signed_at DATETIME, 
	result_to_review_s FLOAT, 
	accepted INTEGER, 
	modified INTEGER, 
	rejected INTEGER, 
	missed INTEGER, 
	PRIMARY KEY (analysis_id), 
	FOREIGN KEY(analysis_id) REFERENCES analyses (id)
);
INSERT INTO "figures" VALUES('be46e83011c3460e8d31b44cdca6dfb1','{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}','positive','2026-01-02 03:04:13.000000',8.0,'2026-01-02 03:04:21.000000',8.0,0,1,0,0);
INSERT INTO "figures" VALUES('0a4291472f994d7c86ae0a2cd299f1c0','{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}','positive','2026-01-02 03:04:33.000000',28.0,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "figures" VALUES('b6ff09ba96664e56841fb5fa306cc02a','{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}','positive','2026-01-02 03:04:44.000000',39.0,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "figures" VALUES('316d356e03424f1c9c15ee437398d481','{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}','positive','2026-01-02 03:04:55.000000',50.0,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "figures" VALUES('8bb46fa43f284494b41bd29b542df628','{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "figures" VALUES('0a76d172e34f4b84b7817af28efb4632','{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "figures" VALUES('b8557b6bdf634687baf00fddb23f6ec8','{"name": "phoi-lung-nodule", "version": "1.0.0", "bundle_hash": "abababababababababababababababababababababababababababababababab", "operating_point": "default"}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE hospital_messages (
	identity VARCHAR(64) NOT NULL, 
	taken_at DATETIME NOT NULL, 
	PRIMARY KEY (identity)
);
INSERT INTO "hospital_messages" VALUES('m1','2026-01-02 03:04:05.000000');
INSERT INTO "hospital_messages" VALUES('m2','2026-01-02 03:05:06.000000');
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
INSERT INTO "instances" VALUES('1.8.9.1','1.8','1.8.9','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','aa/1.8-1.dcm','00',1000,'CT','PACS','2026-01-02 03:04:05.000000');
INSERT INTO "instances" VALUES('1.5.9.1','1.5','1.5.9','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','aa/1.5-1.dcm','00',1000,'CT','PACS','2026-01-02 03:04:05.000000');
INSERT INTO "instances" VALUES('1.5.9.2','1.5','1.5.9','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','aa/1.5-2.dcm','00',1000,'CT','PACS','2026-01-02 03:04:05.000000');
INSERT INTO "instances" VALUES('1.6.9.1','1.6','1.6.9','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','aa/1.6-1.dcm','00',1000,'CT','PACS','2026-01-02 03:04:05.000000');
INSERT INTO "instances" VALUES('1.7.9.1','1.7','1.7.9','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','aa/1.7-1.dcm','00',1000,'CT','PACS','2026-01-02 03:04:05.000000');
CREATE TABLE orders (
	id INTEGER NOT NULL, 
	placer TEXT NOT NULL, 
	filler TEXT NOT NULL, 
	accession_number TEXT NOT NULL, 
	study_instance_uid TEXT NOT NULL, 
	cancelled BOOLEAN NOT NULL, 
	told_at DATETIME NOT NULL, 
	content TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "orders" VALUES(1,'P1','','ACC1','',0,'2026-01-02 03:04:05.000000','{"placer": {"value": "P1", "namespace": "HIS"}, "filler": {"value": "", "namespace": ""}, "accession_number": "ACC1", "study_instance_uid": "", "patients": [{"patient_id": "BN-0042", "issuer": "BVTEST"}], "requester": "Trần^An", "clinical_question": "Nốt phổi?", "procedure_code": "", "procedure": "", "priority": "urgent"}');
CREATE TABLE patient_merges (
	patient_id TEXT NOT NULL, 
	issuer TEXT NOT NULL, 
	surviving_id TEXT NOT NULL, 
	surviving_issuer TEXT NOT NULL, 
	told_at DATETIME NOT NULL, 
	PRIMARY KEY (patient_id, issuer)
);
INSERT INTO "patient_merges" VALUES('BN-0001','BVTEST','BN-0042','BVTEST','2026-01-02 03:05:06.000000');
CREATE TABLE patient_updates (
	patient_id TEXT NOT NULL, 
	issuer TEXT NOT NULL, 
	told_at DATETIME NOT NULL, 
	PRIMARY KEY (patient_id, issuer)
);
CREATE TABLE pauses (
	target VARCHAR(160) NOT NULL, 
	username VARCHAR(64) NOT NULL, 
	at DATETIME NOT NULL, 
	PRIMARY KEY (target)
);
INSERT INTO "pauses" VALUES('destination:pacs','bs.an','2026-01-02 03:05:07.000000');
CREATE TABLE problems (
	id INTEGER NOT NULL, 
	at DATETIME NOT NULL, 
	username VARCHAR(64) NOT NULL, 
	text TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "problems" VALUES(1,'2026-01-02 03:05:07.000000','bs.an','chậm quá');
CREATE TABLE reconciliations (
	id INTEGER NOT NULL, 
	first DATE NOT NULL, 
	last DATE NOT NULL, 
	asked_by VARCHAR(64) NOT NULL, 
	asked_at DATETIME NOT NULL, 
	ended_at DATETIME, 
	report TEXT, 
	PRIMARY KEY (id)
);
INSERT INTO "reconciliations" VALUES(1,'2026-01-01','2026-01-02','bs.an','2026-01-02 03:05:08.000000','2026-01-02 03:05:08.000000','{"compared": 3, "passed_over": 1, "lacking": [{"study_instance_uid": "1.99", "lack": "images_missing", "mending": "fetched", "number": 2}], "trouble": ""}');
INSERT INTO "reconciliations" VALUES(2,'2026-01-02','2026-01-02','nightly','2026-01-02 03:05:08.000000',NULL,NULL);
CREATE TABLE "reviews" (
	analysis_id VARCHAR(64) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	signed TEXT, 
	signed_at DATETIME, 
	state_since DATETIME NOT NULL, 
	acknowledged_by VARCHAR(64), 
	PRIMARY KEY (analysis_id), 
	FOREIGN KEY(analysis_id) REFERENCES analyses (id)
);
INSERT INTO "reviews" VALUES('be46e83011c3460e8d31b44cdca6dfb1','signed','{"reviewer": "bs.an", "reviewer_name": "BS. An", "signed_at": "2026-01-02T03:04:21+00:00", "dispositions": [{"tracking_uid": "2.25.1", "verdict": "modified", "reviewer": "bs.an", "decided_at": "2026-01-02T03:04:20+00:00", "reason": "", "correction": {"center_lps_mm": null, "mean_diameter_mm": 9.5}}]}','2026-01-02 03:04:21.000000','2026-01-02 03:04:21.000000',NULL);
INSERT INTO "reviews" VALUES('0a4291472f994d7c86ae0a2cd299f1c0','open',NULL,NULL,'2026-01-02 03:04:33.000000',NULL);
INSERT INTO "reviews" VALUES('b6ff09ba96664e56841fb5fa306cc02a','open',NULL,NULL,'2026-01-02 03:04:44.000000',NULL);
INSERT INTO "reviews" VALUES('316d356e03424f1c9c15ee437398d481','superseded',NULL,NULL,'2026-01-02 03:04:56.000000',NULL);
CREATE TABLE "studies" (
	study_instance_uid VARCHAR(64) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	header TEXT NOT NULL, 
	first_received_at DATETIME NOT NULL, 
	last_received_at DATETIME NOT NULL, 
	state_since DATETIME NOT NULL, 
	receiving_since DATETIME NOT NULL, 
	patient_id TEXT NOT NULL, 
	PRIMARY KEY (study_instance_uid)
);
INSERT INTO "studies" VALUES('1.1','complete','{"study_instance_uid": "1.1", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}','2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000','2026-01-02 03:04:07.000000','2026-01-02 03:04:05.000000','BN-0042');
INSERT INTO "studies" VALUES('1.2','complete','{"study_instance_uid": "1.2", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}','2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000','2026-01-02 03:04:27.000000','2026-01-02 03:04:05.000000','BN-0042');
INSERT INTO "studies" VALUES('1.4','expired','{"study_instance_uid": "1.4", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}','2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000','2026-01-02 03:04:47.000000','2026-01-02 03:04:05.000000','BN-0042');
INSERT INTO "studies" VALUES('1.3','complete','{"study_instance_uid": "1.3", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}','2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000','2026-01-02 03:04:56.000000','2026-01-02 03:04:05.000000','BN-0042');
INSERT INTO "studies" VALUES('1.8','receiving','{"study_instance_uid": "1.8", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}','2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000','2026-01-02 03:05:00.000000','2026-01-02 03:05:00.000000','BN-0042');
INSERT INTO "studies" VALUES('1.5','complete','{"study_instance_uid": "1.5", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}','2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000','2026-01-02 03:05:03.000000','2026-01-02 03:04:05.000000','BN-0042');
INSERT INTO "studies" VALUES('1.6','receiving','{"study_instance_uid": "1.6", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}','2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000','BN-0042');
INSERT INTO "studies" VALUES('1.7','counting','{"study_instance_uid": "1.7", "patient": {"patient_id": "BN-0042", "issuer": "BVTEST", "name": "Nguyễn^Thị Ánh Tuyết", "birth_date": "1961-05-04", "sex": "F"}, "accession_number": "ACC1", "study_id": "S1", "description": "CT nguc", "referring_physician": "Trần^Văn An", "started_at": "2026-01-02T09:30:00"}','2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000','2026-01-02 03:05:05.000000','2026-01-02 03:04:05.000000','BN-0042');
CREATE INDEX ix_instances_study_instance_uid ON instances (study_instance_uid);
CREATE INDEX ix_dispositions_analysis_id ON dispositions (analysis_id);
CREATE INDEX ix_documents_analysis_id ON documents (analysis_id);
CREATE INDEX ix_documents_study_instance_uid ON documents (study_instance_uid);
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE TRIGGER dispositions_no_update BEFORE UPDATE ON dispositions BEGIN SELECT RAISE(ABORT, 'dispositions is append-only'); END;
CREATE TRIGGER dispositions_no_delete BEFORE DELETE ON dispositions BEGIN SELECT RAISE(ABORT, 'dispositions is append-only'); END;
CREATE INDEX outdated_documents ON documents (study_instance_uid) WHERE outdated = 1;
CREATE INDEX ix_deliveries_study_instance_uid ON deliveries (study_instance_uid);
CREATE INDEX ix_deliveries_document_id ON deliveries (document_id);
CREATE INDEX lane ON deliveries (destination, state);
CREATE INDEX ix_studies_last_received_at ON studies (last_received_at);
CREATE INDEX ix_studies_patient_id ON studies (patient_id);
CREATE INDEX ix_orders_filler ON orders (filler);
CREATE INDEX ix_orders_accession_number ON orders (accession_number);
CREATE INDEX ix_orders_placer ON orders (placer);
CREATE INDEX ix_orders_study_instance_uid ON orders (study_instance_uid);
CREATE INDEX ix_hospital_messages_taken_at ON hospital_messages (taken_at);
CREATE INDEX ix_patient_merges_surviving_id ON patient_merges (surviving_id);
CREATE INDEX ix_commitment_requests_due_at ON commitment_requests (due_at);
CREATE INDEX ix_commitments_transaction_uid ON commitments (transaction_uid);
CREATE INDEX ix_commitments_delivery_id ON commitments (delivery_id);
CREATE INDEX commitments_by_state ON commitments (archive, state);
CREATE INDEX studies_by_state ON studies (state, state_since);
CREATE INDEX reviews_by_state ON reviews (state, state_since);
CREATE INDEX deliveries_by_state ON deliveries (destination, state, updated_at);
CREATE INDEX ix_studies_first_received_at ON studies (first_received_at);
CREATE INDEX deliveries_of_all_lanes ON deliveries (state, queued_at);
CREATE INDEX troubled ON deliveries (destination, failed_tries) WHERE failed_tries > 0;
CREATE INDEX ix_figures_ended_at ON figures (ended_at);
CREATE INDEX ix_figures_signed_at ON figures (signed_at);
CREATE INDEX ix_damages_study_instance_uid ON damages (study_instance_uid);
CREATE INDEX later_revisions ON analyses (study_instance_uid) WHERE revision > 1;
CREATE INDEX analyses_by_state ON analyses (state, state_since);
CREATE INDEX queue ON analyses (state, turn_at);
COMMIT;
