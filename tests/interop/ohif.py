"""OHIF, a DICOM viewer that nobody of Phoi wrote, in front of Orthanc: one origin for both."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from phoi_edge_node.stand_ins.program import free_port
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from support.orthanc import client_of
from support.outside import wait_for

# OHIF's configuration for a PACS that speaks DICOMweb, as its documentation has it for Orthanc.
CONFIGURATION = """
window.config = {
  routerBasename: null,
  extensions: [],
  modes: [],
  showStudyList: true,
  maxNumberOfWebWorkers: 2,
  showWarningMessageForCrossOrigin: false,
  showCPUFallbackMessage: false,
  showErrorDetails: 'always',
  investigationalUseDialog: {option: 'never'},
  strictZSpacingForVolumeViewport: true,
  defaultDataSourceName: 'pacs',
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
    sourceName: 'pacs',
    configuration: {
      friendlyName: 'Orthanc',
      name: 'pacs',
      qidoRoot: '/dicom-web',
      wadoRoot: '/dicom-web',
      wadoUriRoot: '/wado',
      imageRendering: 'wadors',
      thumbnailRendering: 'wadors',
      enableStudyLazyLoad: true,
      qidoSupportsIncludeField: false,
      supportsFuzzyMatching: false,
      supportsWildcard: true,
      omitQuotationForMultipartRequest: true,
      bulkDataURI: {enabled: true},
    },
  }],
};
"""
_PASSED_ON = ("accept", "content-type")


@contextmanager
def served(ohif: Path, orthanc_port: int) -> Iterator[str]:
    """OHIF's files, and Orthanc's DICOMweb beside them; yields the address."""
    with client_of(orthanc_port) as pacs:

        def ask(request: Request) -> Response:
            headers = {
                name: request.headers[name] for name in _PASSED_ON if name in request.headers
            }
            path = f"{request.url.path}?{request.url.query}".rstrip("?")
            answer = pacs.get(path, headers={**headers, "host": request.headers["host"]})
            kind = answer.headers.get("content-type", "application/octet-stream")
            return Response(answer.content, answer.status_code, media_type=kind)

        async def dicom_web(request: Request) -> Response:
            return await run_in_threadpool(ask, request)

        async def file(request: Request) -> Response:
            name = request.path_params["name"]
            if name == "app-config.js":
                return Response(CONFIGURATION, media_type="text/javascript")
            found = ohif / name
            # OHIF is one page: every address that is no file of it is its own to understand.
            return FileResponse(found if found.is_file() else ohif / "index.html")

        app = Starlette(
            routes=[Route("/dicom-web/{rest:path}", dicom_web), Route("/{name:path}", file)]
        )
        port = free_port()
        server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            wait_for("OHIF's server", lambda: server.started)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()
