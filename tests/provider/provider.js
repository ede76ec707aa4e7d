// An OpenID provider for a test, on loopback and in memory: oidc-provider, configured otherwise than a Keycloak is.
//
//     node provider.js PORT LOGOUTS
//
// LOGOUTS is where it tells that a login has ended. Whoever types a name is that person, whatever the password.

import { generateKeyPairSync } from 'node:crypto';
import { createServer } from 'node:http';

import { Provider, errors } from 'oidc-provider';

const [port, logouts] = process.argv.slice(2);
const issuer = `http://127.0.0.1:${port}`;

// What is said of people, in words of its own.
const people = {
  anna: { email: 'anna@acme.example', teams: ['platform'] },
  bert: { email: 'bert@acme.example', teams: ['dev'] },
};
// Whom tokens may be for.
const resources = { 'urn:rhyzome': 'rhyzome', 'urn:shop': 'shop' };
const robot = (id, resource) => ({
  client_id: id,
  client_secret: 'robot-of-a-test',
  grant_types: ['client_credentials'],
  response_types: [],
  redirect_uris: [],
  id_token_signed_response_alg: 'ES256',
  resource,
});

function key(number) {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return { ...privateKey.export({ format: 'jwk' }), kid: `key-${number}`, use: 'sig', alg: 'ES256' };
}

const keys = [key(1)];

function provider() {
  return new Provider(issuer, {
    jwks: { keys },
    clients: [
      {
        client_id: 'rhyzome-cli',
        application_type: 'native',
        token_endpoint_auth_method: 'none',
        grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
        // Whatever the port: RFC 8252, 7.3.
        redirect_uris: ['http://127.0.0.1/healthz', 'http://127.0.0.1/'],
        id_token_signed_response_alg: 'ES256',
        backchannel_logout_uri: logouts,
        backchannel_logout_session_required: true,
      },
      robot('robot', 'urn:rhyzome'),
      robot('stranger', 'urn:shop'),
    ],
    extraClientMetadata: { properties: ['resource'] },
    cookies: { keys: ['of-a-test'] },
    pkce: { methods: ['S256'], required: () => true },
    issueRefreshToken: (_, client) => client.grantTypeAllowed('refresh_token'),
    ttl: { AccessToken: 300, ClientCredentials: 300 },
    findAccount: (_, id) => (people[id] ? { accountId: id, claims: () => ({ sub: id, ...people[id] }) } : undefined),
    // Access tokens as RFC 9068 has them.
    extraTokenClaims(ctx, token) {
      const { AuthorizationCode, DeviceCode, RefreshToken } = ctx.oidc.entities;
      const sid = (AuthorizationCode ?? DeviceCode ?? RefreshToken)?.sid;
      return { ...people[token.accountId], ...(sid && { sid }) };
    },
    features: {
      backchannelLogout: { enabled: true },
      clientCredentials: { enabled: true },
      deviceFlow: { enabled: true },
      revocation: { enabled: true },
      rpInitiatedLogout: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: (_, client) => client.resource ?? 'urn:rhyzome',
        useGrantedResource: () => true,
        getResourceServerInfo(_, resource) {
          if (!resources[resource]) throw new errors.InvalidTarget();
          return { scope: '', audience: resources[resource], accessTokenFormat: 'jwt', jwt: { sign: { alg: 'ES256' } } };
        },
      },
    },
  });
}

let answer = provider().callback();
createServer((request, response) => {
  if (request.method === 'POST' && request.url === '/rotate') {
    // The new key signs; what the old one has signed is still known.
    keys.unshift(key(keys.length + 1));
    answer = provider().callback();
    response.end('{}');
    return;
  }
  answer(request, response);
}).listen(Number(port), '127.0.0.1');
