// MLLP receivers on 127.0.0.1: node-hl7-server, and @medplum/hl7 in original and in enhanced mode.
// Arguments: a folder, and the port of node-hl7-server, which needs to be told one. Each writes what
// it parsed to FOLDER/NAME-MSH10.json: for each segment its name and its fields, as they stand in the
// message. Prints {NAME: PORT} once all listen.
import { Hl7Connection } from '@medplum/hl7';
import { renameSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { Server } from 'node-hl7-server';

const [folder, port] = process.argv.slice(2);

function keep(name, number, segments) {
  const path = join(folder, `${name}-${number}.json`);
  writeFileSync(`${path}.part`, JSON.stringify(segments));
  renameSync(`${path}.part`, path);
}

function listen(server) {
  return new Promise((listening) => server.listen(0, '127.0.0.1', () => listening(server.address().port)));
}

function medplum(name, enhanced) {
  const server = createServer((socket) => {
    const connection = new Hl7Connection(socket, 'utf-8', enhanced);
    connection.addEventListener('error', () => connection.close());
    connection.addEventListener('message', ({ message }) => {
      const number = message.getSegment('MSH').getComponent(10, 1);
      // It takes the CR that ends the last segment for the beginning of another.
      const segments = message.segments.filter((segment) => segment.name);
      keep(name, number, segments.map((segment) => segment.fields.map(String)));
      connection.send(message.buildAck());
    });
  });
  return listen(server);
}

function nodeHl7Server(name) {
  const server = new Server({ bindAddress: '127.0.0.1' });
  return new Promise((listening) => {
    const inbound = server.createInbound({ port: Number(port), encoding: 'utf8' }, async (request, response) => {
      const message = request.getMessage();
      const segments = message.toArray().map((segment) => segment.toString().split('|'));
      keep(name, message.get('MSH.10').toString(), segments);
      await response.sendResponse('AA');
    });
    inbound.on('listen', () => listening(Number(port)));
  });
}

const ports = {
  'node-hl7-server': await nodeHl7Server('node-hl7-server'),
  medplum: await medplum('medplum', false),
  'medplum-enhanced': await medplum('medplum-enhanced', true),
};
console.log(JSON.stringify(ports));
