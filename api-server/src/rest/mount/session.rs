//! `/v1/session`: sessions of people in browsers.

use axum::http::Method;
use axum::routing::get;
use serde_json::{Value, json};

use super::{Mount, Operation};
use crate::rest::{session, session_login};

const PATH: &str = "/v1/session";

impl Mount {
    pub(super) fn sessions(&mut self) {
        let op = |id: &str, summary: &str| Operation::new(id, "general", summary).problems(&[409]);
        let show = op("session", "My session, and until when it lasts")
            .about("For whoever comes by the cookie of one.")
            .answers(200, "So it is. Asking is using: it does not idle.", schema());
        self.route(Method::GET, PATH, show, session::show);

        let about = "For browsers: show a name and a password (`Authorization: Basic`, with `X-Rhyzome-OTP` where a code is \
                     asked for) or the operator's token, and have a cookie. It counts for requests of the same origin's pages; \
                     for what changes something only with the answer's `csrf` in `X-Rhyzome-CSRF`. A session that the browser \
                     has had ends.";
        let make = op("session_begin", "Begin a session").about(about).answers_as(
            201,
            "It has begun, and the cookie is set.",
            "application/json",
            schema(),
            &["Set-Cookie"],
        );
        self.route(Method::POST, PATH, make, session::begin);

        let end = op("session_end", "End my session").about("Its streams end within moments.");
        let text =
            json!({ "type": "string", "description": "Where the browser ends its login at the provider." });
        let to = json!({ "type": "object", "required": ["end_session_url"], "properties": { "end_session_url": text } });
        let end = end
            .answers(
                200,
                "It has ended, at all servers; the login at the provider has not: open this for that.",
                to,
            )
            .answers_nothing(204, "It has ended, at all servers.");
        self.route(Method::DELETE, PATH, end, session::end);
        self.logins_of_browsers();
    }

    fn logins_of_browsers(&mut self) {
        let text = || json!({ "type": "string" });
        let login = Operation::new("session_login", "general", "Log in at a provider, in a browser")
            .open()
            .about("To be opened, not to be asked: it leads to the provider, and by `/v1/session/callback` to `return_to`, with a session.")
            .query("authenticator", text(), "One of `GET /v1/login`; needed where there are several.")
            .query("return_to", text(), "A path of this host: `/`.")
            .problems(&[400, 429, 503])
            .answers_nothing(303, "To the provider.");
        let path = format!("{PATH}/login");
        self.router = std::mem::take(&mut self.router).route(&path, get(session_login::login));
        self.document.add(&Method::GET, &path, login);

        let back = Operation::new("session_callback", "general", "A browser comes back from a provider")
            .open()
            .about("For providers: they send browsers here. Its URL is the one that they must know: `https://HOST/v1/session/callback`.")
            .query("code", text(), "As the provider gives it.")
            .query("state", text(), "As it was sent there.")
            .query("iss", text(), "The provider (RFC 9207).")
            .query("error", text(), "Why nobody has logged in.")
            .problems(&[400, 401, 429, 503])
            .answers_nothing(303, "To where the browser came from; it has a session.");
        let path = format!("{PATH}/callback");
        self.router = std::mem::take(&mut self.router).route(&path, get(session_login::callback));
        self.document.add(&Method::GET, &path, back);
    }
}

fn schema() -> Value {
    let text = |about: &str| json!({ "type": "string", "description": about });
    let time = |about: &str| json!({ "type": "string", "format": "date-time", "description": about });
    json!({
        "type": "object",
        "required": ["name", "authenticator", "operator", "tenant", "user", "made_at", "idle_ends_at", "ends_at", "csrf"],
        "properties": {
            "name": text("Who I am."),
            "authenticator": text("Who knows me; empty: I am the operator of the token."),
            "operator": { "type": "boolean", "description": "I may do everything." },
            "tenant": { "type": ["string", "null"], "description": "The only tenant in which I am known." },
            "user": text("Id of my user; empty for the configuration's own operators."),
            "made_at": time("When it began."),
            "idle_ends_at": time("When it ends, if it is not used until then."),
            "ends_at": time("When it ends, however much it is used."),
            "csrf": text("To be sent as `X-Rhyzome-CSRF` with whatever changes something."),
        },
    })
}
