//! What only a guest has: its console, and what it printed there.

use axum::http::Method;
use serde_json::json;

use super::{Mount, Place};
use crate::kernel::Kind;
use crate::rest::{console, console_log};

impl Mount {
    pub(super) fn guest(&mut self, kind: &'static dyn Kind, place: &Place) {
        let op = place
            .op("console", "The serial console: a websocket, bytes both ways")
            .problems(&[409, 426])
            .answers_nothing(101, "The websocket is open.");
        let path = format!("{}/console", place.one());
        self.route(Method::GET, &path, op, move |ask| console::console(ask, kind));

        let follow = json!({ "type": "boolean", "default": false });
        let lines =
            json!({ "type": "integer", "format": "int32", "minimum": 0, "maximum": console_log::MOST_LINES });
        let about = "The bytes themselves; a node keeps the last megabytes of them. An answer that breaks off was not all.";
        let op = place
            .op("log", "What it has printed on its serial console")
            .about(about)
            .query("follow", follow, "What it prints from now on too, until you hang up.")
            .query("tail", lines, "The last lines only, so many.")
            .problems(&[409])
            .answers_as(200, "What it printed.", "text/plain", json!({ "type": "string" }), &[]);
        let path = format!("{}/log", place.one());
        self.route(Method::GET, &path, op, move |ask| console_log::log(ask, kind));
    }
}
