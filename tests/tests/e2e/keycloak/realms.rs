//! A Keycloak with two realms: `cloud`, whose people may be operators, and `acme`, whose people are known in the tenant
//! acme only.

use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use xtask::http::{self, Reply};
use xtask::keycloak::{self, ADMIN};
use xtask::world::Answering;

use crate::people;

/// What robots show at the realm `cloud`.
pub const ROBOT: (&str, &str) = ("robot", "robot-of-a-test");
/// Whoever logs in, in both realms.
pub const ANNA: (&str, &str) = ("anna", "anna-of-a-test");

/// The realms, and who may change them.
pub struct Realms {
    pub keycloak: Answering,
    /// Where its log is, for as long as somebody may want to read it.
    _folder: TempDir,
}

impl Realms {
    /// Starts it; there is no realm yet.
    pub fn start() -> Realms {
        let home = keycloak::prepared(false).unwrap();
        let folder = tempfile::tempdir().unwrap();
        Realms { keycloak: keycloak::start(&home, folder.path()).unwrap(), _folder: folder }
    }

    /// Makes a realm whose logouts are told to this API.
    pub fn make(&self, realm: &str, ended: &str) {
        self.admin("POST", "/admin/realms", &realm_of(realm, ended));
    }

    /// The issuer of a realm.
    pub fn issuer(&self, realm: &str) -> String {
        keycloak::issuer(self.keycloak.address, realm)
    }

    /// A token from the realm's own endpoint.
    pub fn token(&self, realm: &str, fields: &[(&str, &str)]) -> Value {
        let reply = self.form(realm, "token", fields);
        assert_eq!(reply.status, 200, "{}", reply.body);
        serde_json::from_str(&reply.body).unwrap()
    }

    /// A robot's token.
    pub fn robot(&self, client: &str) -> String {
        let fields =
            [("grant_type", "client_credentials"), ("client_id", client), ("client_secret", ROBOT.1)];
        self.token("cloud", &fields)["access_token"].as_str().unwrap().to_owned()
    }

    /// One request of a form to an endpoint of a realm.
    pub fn form(&self, realm: &str, endpoint: &str, fields: &[(&str, &str)]) -> Reply {
        let path = format!("/realms/{realm}/protocol/openid-connect/{endpoint}");
        people::form(self.keycloak.address, &path, fields)
    }

    /// The realm signs with a new key from now on.
    pub fn rotate(&self, realm: &str) {
        let id = self.admin("GET", &format!("/admin/realms/{realm}"), &Value::Null)["id"].clone();
        let key = json!({
            "name": "newer", "providerId": "rsa-generated", "providerType": "org.keycloak.keys.KeyProvider",
            "parentId": id, "config": { "priority": ["1000"], "algorithm": ["RS256"], "keySize": ["2048"] },
        });
        self.admin("POST", &format!("/admin/realms/{realm}/components"), &key);
    }

    /// Ends all logins of somebody, as an administrator would.
    pub fn log_out(&self, realm: &str, user: &str) {
        let found = self.admin(
            "GET",
            &format!("/admin/realms/{realm}/users?username={user}&exact=true"),
            &Value::Null,
        );
        let id = found[0]["id"].as_str().unwrap();
        self.admin("POST", &format!("/admin/realms/{realm}/users/{id}/logout"), &Value::Null);
    }

    /// Ends one login, as an administrator would.
    pub fn end(&self, realm: &str, session: &str) {
        self.admin("DELETE", &format!("/admin/realms/{realm}/sessions/{session}"), &Value::Null);
    }

    /// A client whose service account may make realms, and nothing more.
    pub fn maker(&self, (client, secret): (&str, &str)) {
        let body = json!({
            "clientId": client, "secret": secret, "serviceAccountsEnabled": true, "standardFlowEnabled": false,
        });
        self.admin("POST", "/admin/realms/master/clients", &body);
        let found =
            self.admin("GET", &format!("/admin/realms/master/clients?clientId={client}"), &Value::Null);
        let id = found[0]["id"].as_str().unwrap();
        let path = format!("/admin/realms/master/clients/{id}/service-account-user");
        let account = self.admin("GET", &path, &Value::Null)["id"].as_str().unwrap().to_owned();
        let role = self.admin("GET", "/admin/realms/master/roles/create-realm", &Value::Null);
        let path = format!("/admin/realms/master/users/{account}/role-mappings/realm");
        self.admin("POST", &path, &json!([role]));
    }

    /// Anna, in a group, in a realm that somebody else has made.
    pub fn person(&self, realm: &str) {
        self.admin("POST", &format!("/admin/realms/{realm}/groups"), &json!({ "name": "dev" }));
        let body = json!({
            "username": ANNA.0, "enabled": true, "email": "anna@acme.example", "emailVerified": true,
            "firstName": "Anna", "lastName": "A", "groups": ["/dev"],
            "credentials": [{ "type": "password", "value": ANNA.1, "temporary": false }],
        });
        self.admin("POST", &format!("/admin/realms/{realm}/users"), &body);
    }

    /// Whether there is this realm.
    pub fn is_there(&self, realm: &str) -> bool {
        http::page(self.keycloak.address, &format!("/realms/{realm}"), Duration::from_secs(60)).is_ok()
    }

    fn admin(&self, method: &str, path: &str, body: &Value) -> Value {
        let fields = [
            ("grant_type", "password"),
            ("client_id", "admin-cli"),
            ("username", ADMIN.0),
            ("password", ADMIN.1),
        ];
        let token = self.token("master", &fields);
        let headers = [
            format!("Authorization: Bearer {}", token["access_token"].as_str().unwrap()),
            "Content-Type: application/json".to_owned(),
        ];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let wait = Duration::from_secs(60);
        let reply = http::request(self.keycloak.address, method, path, &headers, &body, wait).unwrap();
        assert!(reply.status < 300, "{method} {path}: {} {}", reply.status, reply.body);
        serde_json::from_str(&reply.body).unwrap_or(Value::Null)
    }
}

fn realm_of(realm: &str, ended: &str) -> Value {
    let audience = json!({
        "name": "aud", "protocol": "openid-connect", "protocolMapper": "oidc-audience-mapper",
        "config": { "included.custom.audience": "rhyzome", "access.token.claim": "true", "id.token.claim": "false" },
    });
    let groups = json!({
        "name": "groups", "protocol": "openid-connect", "protocolMapper": "oidc-group-membership-mapper",
        "config": { "claim.name": "groups", "full.path": "true", "access.token.claim": "true", "id.token.claim": "true" },
    });
    let robot = |id: &str, mappers: Value| {
        json!({
            "clientId": id, "secret": ROBOT.1, "serviceAccountsEnabled": true, "standardFlowEnabled": false,
            "protocolMappers": mappers,
        })
    };
    json!({
        "realm": realm, "enabled": true, "sslRequired": "none", "accessTokenLifespan": 300,
        "oauth2DevicePollingInterval": 1,
        "roles": { "realm": [{ "name": "cloud-admin" }] },
        "groups": [{ "name": "dev" }],
        "users": [{
            "username": ANNA.0, "enabled": true, "email": "anna@acme.example", "emailVerified": true,
            "firstName": "Anna", "lastName": "A", "groups": ["/dev"], "realmRoles": ["cloud-admin"],
            "credentials": [{ "type": "password", "value": ANNA.1, "temporary": false }],
        }],
        "clients": [
            {
                "clientId": "rhyzome-cli", "publicClient": true, "standardFlowEnabled": true,
                "directAccessGrantsEnabled": false, "redirectUris": ["http://127.0.0.1/*"],
                "attributes": {
                    "oauth2.device.authorization.grant.enabled": "true", "backchannel.logout.url": ended,
                    "backchannel.logout.session.required": "false",
                },
                "protocolMappers": [audience, groups],
            },
            robot(ROBOT.0, json!([audience])),
            robot("stranger", json!([])),
        ],
    })
}
