//! What comes from a node as a stream: a guest's console, what it printed there, ways to log in; a snapshot.

use axum::http::Method;
use serde_json::json;

use super::{Mount, Place};
use crate::kernel::Kind;
use crate::rest::operation::Operation;
use crate::rest::schemas::reference;
use crate::rest::{console, console_log, snapshot, ssh};

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
        self.ssh(kind, place);
    }

    fn ssh(&mut self, kind: &'static dyn Kind, place: &Place) {
        let op = place
            .op("ssh_certificate", "A short certificate for your key, which this instance lets in")
            .about("As any of its users. It says itself until when; `rhyzome ssh` asks for one each time.")
            .problems(&[409])
            .body(&["application/json"], true, ssh::body(), None)
            .answers(
                201,
                "The certificate, and what to believe of the instance.",
                reference("SshCertificate"),
            );
        let path = format!("{}/ssh-certificate", place.one());
        self.route(Method::POST, &path, op, move |ask| ssh::certificate(ask, kind));

        let port =
            json!({ "type": "integer", "format": "int32", "minimum": 1, "maximum": 65535, "default": 22 });
        let op = place
            .op("tunnel", "A TCP port of it, from wherever you are: a websocket, bytes both ways")
            .about("Its node connects to the address of its first network interface. For whoever may log in there.")
            .query("port", port, "Which one.")
            .problems(&[409, 426])
            .answers_nothing(101, "The websocket is open.");
        let path = format!("{}/tunnel", place.one());
        self.route(Method::GET, &path, op, move |ask| ssh::tunnel(ask, kind));
    }

    pub(super) fn snapshot(&mut self, kind: &'static dyn Kind, place: &Place) {
        let bytes = || json!({ "type": "string", "format": "binary" });
        let headers = ["ETag", "Accept-Ranges", "Content-Length"];
        let parts = ["ETag", "Accept-Ranges", "Content-Length", "Content-Range"];
        let about = "A qcow2 that stands on nothing else; compare its SHA-256 with the one in the status, which is its ETag \
                     too. An answer that breaks off was not all: ask for the rest.";
        let op = place
            .op("content", "The bytes of a snapshot")
            .about(about)
            .header("Range", "`bytes=4096-`: from there on. One range; of several all is sent.")
            .header("If-Range", "The ETag of what you have: all is sent if it is another one now.")
            .problems(&[409, 416])
            .answers_as(200, "All of them.", "application/octet-stream", bytes(), &headers)
            .answers_as(206, "Those that were asked for.", "application/octet-stream", bytes(), &parts);
        let path = format!("{}/content", place.one());
        self.route(Method::GET, &path, op, move |ask| snapshot::content(ask, kind));
    }

    /// Who signs for a tenant.
    pub(super) fn ssh_authorities(&mut self, tag: &str) {
        let op = Operation::new(
            "tenant_ssh_ca",
            tag,
            "Who signs for SSH in a tenant: for its instances, for its users",
        )
        .answers(200, "Public keys.", reference("SshAuthorities"));
        self.route(Method::GET, "/v1/tenants/{tenant}/ssh-ca", op, ssh::authorities);
    }
}
