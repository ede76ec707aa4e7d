//! Where people log in, and where their provider tells that a login has ended.

use axum::http::Method;
use axum::routing::{get, post};
use serde_json::json;

use super::{Mount, Operation};
use crate::rest::login;

impl Mount {
    pub(super) fn logins(&mut self) {
        let text = |about: &str| json!({ "type": "string", "description": about });
        let item = json!({
            "type": "object", "required": ["name", "issuer", "client_id"],
            "properties": {
                "name": text("The authenticator."), "issuer": text("An OpenID provider."),
                "client_id": text("A public client of it, for the device flow and for codes with PKCE."),
            },
        });
        let list = json!({
            "type": "object", "required": ["items"], "properties": { "items": { "type": "array", "items": item } },
        });
        let op = Operation::new("logins", "general", "Where people log in").open().problems(&[429, 503]);
        let about =
            "Those whose people may be known in any tenant; a tenant that has its own tells its own people.";
        self.router = std::mem::take(&mut self.router).route("/v1/login", get(login::logins));
        self.document.add(&Method::GET, "/v1/login", op.about(about).answers(200, "All of them.", list));

        let form = json!({
            "type": "object", "required": ["logout_token"],
            "properties": { "logout_token": text("As OpenID Connect Back-Channel Logout has it.") },
        });
        let about = "For OpenID providers, not for people: the token in the body proves who tells.";
        let op = Operation::new("login_ended", "general", "A provider tells that a login has ended")
            .open()
            .about(about)
            .body(&["application/x-www-form-urlencoded"], true, form, None)
            .problems(&[400, 404, 408, 413, 429, 503])
            .answers_nothing(200, "None of its tokens counts any more.");
        let path = "/v1/login/{authenticator}/ended";
        self.router = std::mem::take(&mut self.router).route(path, post(login::ended));
        self.document.add(&Method::POST, path, op);
    }
}
