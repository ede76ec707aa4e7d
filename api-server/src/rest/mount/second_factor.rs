//! `/v1/second-factor`: one's own; and where whoever may change users takes one away.

use axum::http::Method;
use serde_json::json;

use super::{Mount, Operation};
use crate::kernel::Kind;
use crate::rest::second_factor;

const PATH: &str = "/v1/second-factor";

impl Mount {
    pub(super) fn second_factor(&mut self) {
        let text = |about: &str| json!({ "type": "string", "description": about });
        let op = |id: &str, summary: &str| Operation::new(id, "general", summary);
        let state = json!({
            "type": "object", "required": ["enrolled", "confirmed_at", "recovery_codes", "required"],
            "properties": {
                "enrolled": { "type": "boolean", "description": "A code is demanded with the password." },
                "confirmed_at": { "type": ["string", "null"], "format": "date-time" },
                "recovery_codes": { "type": "integer", "description": "How many are left." },
                "required": { "type": "boolean", "description": "Nobody gets far without one." },
            },
        });
        let show = op("second_factor", "My second factor").answers(200, "What is known of it.", state);
        self.route(Method::GET, PATH, show, second_factor::show);

        let made = json!({
            "type": "object", "required": ["secret", "uri"],
            "properties": { "secret": text("The key, in base32."), "uri": text("The same, for a QR code.") },
        });
        let about =
            "A key for an app that shows codes (RFC 6238). It is shown once. It counts when it is confirmed.";
        let enrol = op("second_factor_enrol", "Make a key for an app").about(about).problems(&[409]).answers(
            201,
            "The key, this once.",
            made,
        );
        self.route(Method::POST, PATH, enrol, second_factor::enrol);

        let body = json!({
            "type": "object", "required": ["code"], "additionalProperties": false,
            "properties": { "code": text("The six digits that the app shows.") },
        });
        let codes = json!({
            "type": "object", "required": ["recovery_codes"],
            "properties": { "recovery_codes": { "type": "array", "items": { "type": "string" } } },
        });
        let confirm = op("second_factor_confirm", "Show that the app has the key")
            .about("From then on every request with a password needs a code, in `X-Rhyzome-OTP`.")
            .body(&["application/json"], true, body, Some(json!({ "code": "123456" })))
            .problems(&[409, 413, 415, 422])
            .answers(200, "Codes for when the app is gone, this once. Each counts once.", codes);
        self.route(Method::POST, &format!("{PATH}/confirm"), confirm, second_factor::confirm);

        let op = op("second_factor_drop", "Drop my second factor").problems(&[409]);
        self.route(Method::DELETE, PATH, op.answers_nothing(204, "There is none."), second_factor::drop_own);
    }

    /// Beside the kind `user`.
    pub(super) fn second_factors(&mut self, kind: &'static dyn Kind) {
        let op = Operation::new("user_second_factor_drop", kind.meta().plural, "Drop a user's second factor")
            .about("For somebody who has lost their app and all recovery codes. They get in by their password alone.")
            .answers_nothing(204, "There is none.");
        let path = "/v1/users/{id}/second-factor";
        self.route(Method::DELETE, path, op, move |ask| second_factor::drop_of(ask, kind));
    }
}
