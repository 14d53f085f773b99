// oidc-provider, certified by the OpenID Foundation, as an authorisation server with two clients: one
// with a secret, one with a key. Usage: node oidc_server.mjs SECRET KEYS.json ALGORITHM.
// Prints {"port": N} once it listens on 127.0.0.1.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import Provider from 'oidc-provider';

const [secret, keys, algorithm] = process.argv.slice(2);
const CLIENT = { redirect_uris: [], response_types: [], grant_types: ['client_credentials'] };

const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const { port } = server.address();
  const provider = new Provider(`http://127.0.0.1:${port}`, {
    clients: [
      {
        ...CLIENT,
        client_id: 'phoi:bvdk/1',
        client_secret: secret,
        token_endpoint_auth_method: 'client_secret_basic',
      },
      {
        ...CLIENT,
        client_id: 'phoi',
        jwks: JSON.parse(readFileSync(keys, 'utf8')),
        token_endpoint_auth_method: 'private_key_jwt',
        token_endpoint_auth_signing_alg: algorithm,
      },
    ],
    enabledJWA: { clientAuthSigningAlgValues: ['RS384', 'ES384'] },
    features: { clientCredentials: { enabled: true }, devInteractions: { enabled: false } },
    scopes: ['system/*.write'],
  });
  server.on('request', provider.callback());
  console.log(JSON.stringify({ port }));
});
