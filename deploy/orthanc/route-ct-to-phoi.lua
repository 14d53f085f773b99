-- Orthanc sends every CT series to Phoi once it is complete, and nothing else.
--
-- In orthanc.json:
--   "LuaScripts": ["/etc/orthanc/route-ct-to-phoi.lua"],
--   "DicomModalities": {"phoi": {"AET": "PHOI", "Host": "192.0.2.20", "Port": 11112}}
--
-- By series and modality, not by study: Phoi's results (SR, SEG, KO, OT) come back into the same
-- study, which would then be "stable" a second time and be sent a second time.
-- By a job of the REST API, for SendToModality() of Orthanc 1.10 takes instances only; a job that
-- failed is seen at /jobs and can be sent again from there.

local PHOI = 'phoi' -- its name in "DicomModalities"

function OnStableSeries(seriesId, tags, metadata)
  if tags['Modality'] == 'CT' then
    RestApiPost('/modalities/' .. PHOI .. '/store',
                DumpJson({Resources = {seriesId}, Synchronous = false}))
  end
end
