//! Routes and their operations, made in the same act: what is served is in the document.

mod guest;
mod login;
mod second_factor;
mod session;

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::http::Method;
use axum::routing::{MethodFilter, get, on};
use serde_json::{Value, json};

use super::action::call_schema;
use super::denial::Who;
use super::document::Document;
use super::extract::Ask;
use super::operation::Operation;
use super::problem::{Answer, Problem};
use super::schemas::{self, reference};
use super::share::worked;
use super::standing::Standing;
use super::{RestContext, access, action, bulk, content, crud, events, jobs, quota, root, webhook};
use crate::kernel::kind::pascal;
use crate::kernel::{Kind, Registry, Scope};

/// All routes, and what the document says of them.
#[derive(Default)]
pub struct Mount {
    /// The routes.
    pub router: Router<Arc<RestContext>>,
    /// The document.
    pub document: Document,
}

/// Everything of every kind.
pub fn all(registry: &Registry) -> Mount {
    let mut mount = Mount::default();
    mount.document.schemas = schemas::shared();
    mount.general();
    for kind in registry.all() {
        mount.kind(*kind);
    }
    mount.jobs();
    mount.events();
    mount
}

/// Where a set of routes is, and how its operations are called.
pub(super) struct Place {
    base: String,
    ids: String,
    tag: &'static str,
    name: String,
}

impl Place {
    pub(super) fn op(&self, verb: &str, summary: impl Into<String>) -> Operation {
        Operation::new(format!("{}_{verb}", self.ids), self.tag, summary)
    }

    pub(super) fn one(&self) -> String {
        format!("{}/{{id}}", self.base)
    }

    pub(super) fn schema(&self) -> Value {
        reference(&self.name)
    }
}

// === impl Mount ===

impl Mount {
    /// Serves a route, and says so in the document.
    pub(super) fn route<F, W>(&mut self, method: Method, path: &str, operation: Operation, handler: F)
    where
        F: Fn(Ask) -> W + Clone + Send + Sync + 'static,
        W: Future<Output = Answer> + Send + 'static,
    {
        let serve = move |ask: Ask| {
            let (operator, who, standing) = (ask.caller().operator, Who::of(&ask), Standing::of(&ask));
            let pass = ask.pass().clone();
            let work = handler(ask);
            async move {
                let answer = work.await;
                answer.map(|response| worked(pass, standing.around(response))).map_err(|problem: Problem| {
                    who.was_denied(&problem);
                    problem.seen_by(operator)
                })
            }
        };
        let filter = MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET);
        self.router = std::mem::take(&mut self.router).route(path, on(filter, serve));
        self.document.add(&method, path, operation);
    }

    fn tag(&mut self, name: &str, about: &str) {
        self.document.tags.push(json!({ "name": name, "description": about }));
    }

    fn general(&mut self) {
        self.tag("general", "Where you are, who you are");
        let any = || json!({ "type": "object", "additionalProperties": true });
        let op =
            |id: &str, summary: &str| Operation::new(id, "general", summary).answers(200, "So it is.", any());
        self.route(Method::GET, "/v1", op("root", "What there is"), root::root);
        self.route(
            Method::GET,
            "/v1/whoami",
            op("whoami", "Who I am, and what I may do here"),
            access::whoami,
        );
        let text = || json!({ "type": "string" });
        let can = op("can", "Whether I may do something, and why")
            .query("verb", text(), "What: `create`.")
            .query("kind", text(), "With which kind.")
            .query("tenant", text(), "In this tenant; without it, with what operators own.")
            .query("id", text(), "With this one of them.");
        self.route(Method::GET, "/v1/can", can, access::can);
        self.router = std::mem::take(&mut self.router).route("/healthz", get(root::health));
        let health = op("health", "Whether the server can work").open().problems(&[429, 503]);
        self.document.add(&Method::GET, "/healthz", health);
        self.logins();
        self.second_factor();
        self.sessions();
    }

    fn kind(&mut self, kind: &'static dyn Kind) {
        let meta = kind.meta();
        let tag = meta.plural;
        self.tag(tag, meta.about);
        let example = schemas::add_kind(kind, &mut self.document.schemas);
        let name = pascal(meta.kind);
        let ids = meta.kind.replace('-', "_");
        let global = format!("/v1/{}", meta.plural);
        let of_tenants = format!("/v1/tenants/{{tenant}}/{}", meta.plural);
        let place = |base: &str, ids: String| Place { base: base.to_owned(), ids, tag, name: name.clone() };
        match meta.scope {
            Scope::Operator => self.set(kind, &place(&global, ids), example.as_ref()),
            Scope::Both | Scope::Apart => {
                self.set(kind, &place(&of_tenants, ids.clone()), example.as_ref());
                self.set(kind, &place(&global, format!("global_{ids}")), example.as_ref());
            }
            Scope::Tenant => {
                self.set(kind, &place(&of_tenants, ids.clone()), example.as_ref());
                let place = place(&global, ids);
                let summary = format!("All {} of all tenants (operators)", words(meta.plural));
                let op = list_parameters(place.op("list_all", summary)).answers(
                    200,
                    "A page.",
                    reference(&format!("{name}Page")),
                );
                self.route(Method::GET, &global, op, move |ask| crud::list_everywhere(ask, kind));
            }
        }
    }

    /// All routes of a kind at one place.
    fn set(&mut self, kind: &'static dyn Kind, place: &Place, example: Option<&Value>) {
        let (one, many) = (words(kind.meta().kind), words(kind.meta().plural));
        let list = list_parameters(place.op("list", format!("A page of {many}"))).answers(
            200,
            "A page.",
            reference(&format!("{}Page", place.name)),
        );
        self.route(Method::GET, &place.base, list, move |ask| crud::list(ask, kind));

        let body = example.map(|spec| json!({ "name": format!("my{}", kind.meta().prefix), "spec": spec }));
        let create = place
            .op("create", format!("Make a new {one}"))
            .waits()
            .plans()
            .body(&["application/json"], true, reference(&format!("{}Create", place.name)), body)
            .answers_object(201, "It is there: nothing was left to do, or you waited.", place.schema())
            .answers_object(202, "Its job is at work.", place.schema());
        self.route(Method::POST, &place.base, create, move |ask| crud::create(ask, kind));

        self.one(kind, place, &one);
        self.bulk(kind, place, &many);
        self.history(kind, place, &one);
        self.actions(kind, place);
    }

    fn one(&mut self, kind: &'static dyn Kind, place: &Place, one: &str) {
        let path = place.one();
        let get = place
            .op("get", format!("One {one}"))
            .header("If-None-Match", "An ETag that you know: 304 if it is still the present one.")
            .answers_object(200, "The object.", place.schema())
            .answers_nothing(304, "It is as you know it.");
        self.route(Method::GET, &path, get, move |ask| crud::get(ask, kind));

        let media = ["application/merge-patch+json", "application/json"];
        let patch = place
            .op("update", format!("Change a {one}"))
            .about("What needs a stop is pending until the next one, and shown so in the status.")
            .waits()
            .plans()
            .conditional()
            .body(&media, true, reference(&format!("{}Patch", place.name)), None)
            .answers_object(200, "It is so: nothing was left to do, or you waited.", place.schema())
            .answers_object(202, "Its job is at work.", place.schema());
        self.route(Method::PATCH, &path, patch, move |ask| crud::patch(ask, kind));

        let delete = place
            .op("delete", format!("Take a {one} away"))
            .about("The name is free at once. 409 while something refers to it, or under protection.")
            .waits()
            .plans()
            .conditional()
            .answers_object(202, "Its job is at work.", place.schema())
            .answers_nothing(204, "It is gone.");
        let delete = match kind.meta().kind {
            "tenant" => {
                let cascade = json!({ "type": "boolean", "default": false });
                let realm = json!({ "type": "string", "enum": ["keep", "delete"], "default": "keep" });
                let delete = delete.query(
                    "cascade",
                    cascade,
                    "All that it has goes too; its name is free when all is gone.",
                );
                let about = "`delete`: its realm at the identity provider goes too, if Rhyzome has made it.";
                delete.query("realm", realm, about)
            }
            _ => delete,
        };
        self.route(Method::DELETE, &path, delete, move |ask| crud::delete(ask, kind));
    }

    /// The same on all that match.
    fn bulk(&mut self, kind: &'static dyn Kind, place: &Place, many: &str) {
        let op = |verb: &str, summary: String| {
            let about = format!(
                "On at most {} objects, each with its own outcome; refused without a filter.",
                bulk::MOST
            );
            let op = filter_parameters(place.op(&format!("{verb}_all"), summary)).about(&about).waits();
            op.plans_each().answers(200, "The outcome of each.", reference("Bulk"))
        };
        let media = ["application/merge-patch+json", "application/json"];
        let patch = op("update", format!("Change all {many} that match"));
        let patch = patch.body(&media, true, reference(&format!("{}Patch", place.name)), None);
        self.route(Method::PATCH, &place.base, patch, move |ask| bulk::patch(ask, kind));
        let delete = op("delete", format!("Take all {many} away that match"));
        self.route(Method::DELETE, &place.base, delete, move |ask| bulk::delete(ask, kind));
        for one in kind.meta().actions {
            let verb = one.verb.replace('-', "_");
            let act = op(&verb, format!("{}: all {many} that match", one.about));
            let act = act.body(&["application/json"], false, call_schema(kind, one.verb), None);
            let path = format!("{}/actions/{}", place.base, one.verb);
            self.route(Method::POST, &path, act, move |ask| bulk::act(ask, kind, one));
        }
    }

    fn history(&mut self, kind: &'static dyn Kind, place: &Place, one: &str) {
        let at = |rest: &str| format!("{}/{rest}", place.one());
        let revisions = paged(place.op("revisions", format!("What a {one} was, the newest first"))).answers(
            200,
            "A page.",
            reference("RevisionPage"),
        );
        self.route(Method::GET, &at("revisions"), revisions, move |ask| crud::revisions(ask, kind));

        let restore = place
            .op("restore", format!("Make a {one} what it was at a revision"))
            .waits()
            .plans()
            .conditional()
            .problems(&[422])
            .answers_object(200, "It is so.", place.schema())
            .answers_object(202, "Its job is at work.", place.schema());
        self.route(Method::POST, &at("revisions/{n}/restore"), restore, move |ask| crud::restore(ask, kind));

        let files = json!({ "type": "object", "additionalProperties": { "type": "string" } });
        let nodes = json!({ "type": "object", "additionalProperties": files });
        let rendered = json!({ "type": "object", "required": ["nodes"], "properties": { "nodes": nodes } });
        let op = place
            .op("rendered", format!("Exactly what nodes apply for a {one}"))
            .about("By node, by file: command lines, rulesets, configurations; secrets masked.")
            .answers(200, "The files.", rendered);
        self.route(Method::GET, &at("rendered"), op, move |ask| crud::rendered(ask, kind));

        let text = json!({ "type": "string" });
        let entry = json!({
            "type": "object", "required": ["who", "may", "why"],
            "properties": {
                "who": text, "may": { "type": "array", "items": text }, "why": text, "verb": text,
                "denied": { "type": "array", "items": text },
            },
        });
        let list = json!({ "type": "object", "required": ["items"], "properties": { "items": { "type": "array", "items": entry } } });
        let op = place.op("access", format!("Who may do what with a {one}, and why")).answers(
            200,
            "All who may do anything.",
            list,
        );
        self.route(Method::GET, &at("access"), op, move |ask| access::access(ask, kind));
    }

    fn actions(&mut self, kind: &'static dyn Kind, place: &Place) {
        let at = |rest: &str| format!("{}/{rest}", place.one());
        for one in kind.meta().actions {
            let verb = one.verb.replace('-', "_");
            let op = place
                .op(&verb, one.about)
                .waits()
                .plans()
                .conditional()
                .body(&["application/json"], false, call_schema(kind, one.verb), None)
                .answers_object(200, "It is done.", place.schema())
                .answers_object(202, "Its job is at work.", place.schema());
            let path = at(&format!("actions/{}", one.verb));
            self.route(Method::POST, &path, op, move |ask| action::act(ask, kind, one));
        }
        match kind.meta().kind {
            "user" => self.second_factors(kind),
            "tenant" => {
                let op = Operation::new("tenant_quota", place.tag, "What a tenant uses, and what it may use")
                    .answers(200, "By quantity.", reference("Quota"));
                self.route(Method::GET, "/v1/tenants/{tenant}/quota", op, quota::quota);
                self.ssh_authorities(place.tag);
            }
            "node" => self.node(kind, place),
            "webhook" => self.webhook(kind, place),
            "image" => {
                let bytes = json!({ "type": "string", "format": "binary" });
                let op = place
                    .op("content_put", "Upload the bytes of an image")
                    .about("A whole qcow2: it is inspected before anything opens it; refused bytes leave nothing.")
                    .body(&["application/octet-stream"], true, bytes, None)
                    .problems(&[409])
                    .answers_object(200, "The image with its content.", place.schema());
                self.route(Method::PUT, &at("content"), op, move |ask| content::put(ask, kind));
            }
            "instance" => self.guest(kind, place),
            "snapshot" => self.snapshot(kind, place),
            _ => {}
        }
    }

    fn webhook(&mut self, kind: &'static dyn Kind, place: &Place) {
        let at = |rest: &str| format!("{}/{rest}", place.one());
        let about = "Sent now, whether it is enabled or not; the answer tells what the receiver answered.";
        let op = place.op("test", "Send a test message").about(about).problems(&[409]);
        let op = op.answers(200, "What came of it.", reference("WebhookDelivery"));
        self.route(Method::POST, &at("actions/test"), op, move |ask| webhook::test(ask, kind));
        let op = paged(place.op("deliveries", "The last tries to deliver, the newest first")).answers(
            200,
            "A page.",
            reference("WebhookDeliveryPage"),
        );
        self.route(Method::GET, &at("deliveries"), op, move |ask| webhook::deliveries(ask, kind));
        let about = "Under the same `webhook-id`. Beside the usual order, which goes on where it was.";
        let op =
            place.op("redeliver", "Send once more what was sent before").about(about).problems(&[409, 410]);
        let op = op.answers(200, "What came of it.", reference("WebhookDelivery"));
        let path = at("deliveries/{number}/redeliver");
        self.route(Method::POST, &path, op, move |ask| webhook::redeliver(ask, kind));
    }

    fn jobs(&mut self) {
        self.tag("jobs", "What is being done, and what was");
        for (base, ids, whose) in [
            ("/v1/tenants/{tenant}/jobs", "job", "of a tenant"),
            ("/v1/jobs", "global_job", "of all tenants (operators)"),
        ] {
            let op = |verb: &str, summary: String| Operation::new(format!("{ids}_{verb}"), "jobs", summary);
            let text = || json!({ "type": "string" });
            let truth = || json!({ "type": "boolean", "default": false });
            let at = |rest: &str| format!("{base}/{{id}}{rest}");
            let job = || reference("Job");
            let list = paged(op("list", format!("Jobs {whose}, the newest first")))
                .query("resource", text(), "Only those on the object of this id.")
                .query("state", text(), "Only those in this state.")
                .query(
                    "dead",
                    truth(),
                    "Only those that failed for good: no later job has taken their place.",
                )
                .answers(200, "A page; its jobs are without their steps.", reference("JobPage"));
            self.route(Method::GET, base, list, jobs::list);
            let get = op("get", format!("One job {whose}")).answers(200, "The job.", job());
            self.route(Method::GET, &at(""), get, jobs::get);
            let seconds =
                json!({ "type": "integer", "format": "int32", "minimum": 0, "maximum": 600, "default": 30 });
            let wait = op("wait", "Wait for a job".into())
                .query("timeout", seconds, "For so many seconds at most.")
                .answers(200, "The job, final unless time was over.", job());
            self.route(Method::GET, &at("/wait"), wait, jobs::wait);
            let cancel = op("cancel", "Cancel a job that is not final".into()).once().answers(
                202,
                "The job as it is now.",
                job(),
            );
            self.route(Method::POST, &at("/cancel"), cancel, jobs::cancel);
            let retry = op("retry", "Do again what failed, as a new job".into())
                .reasoned()
                .once()
                .answers_as(202, "The new job.", "application/json", job(), &["Location"]);
            self.route(Method::POST, &at("/retry"), retry, jobs::retry);
            let skip = op("skip", "Leave what a failed job left as it is".into())
                .about("Or, for a job that waits for a node to let go of something, no longer wait for it.")
                .reasoned()
                .once()
                .answers(202, "The job as it is now.", job());
            self.route(Method::POST, &at("/skip"), skip, jobs::skip);
            let undo = op("undo", "Take back what a failed job wanted, as a new job".into())
                .about("The object of a failed creation is deleted; a spec goes back to what was applied before.")
                .reasoned()
                .once()
                .answers_as(202, "The new job.", "application/json", job(), &["Location"]);
            self.route(Method::POST, &at("/undo"), undo, jobs::undo);
            let log = op("log", "Follow a job: one line for each change of a step, until it is final".into())
                .about("Text; JSON lines when `Accept` asks for JSON.")
                .answers_as(200, "Lines, as they come.", "text/plain", text(), &[]);
            self.route(Method::GET, &at("/log"), log, jobs::log);
        }
    }
}

/// The log: as a stream, and as pages for the audit.
impl Mount {
    fn events(&mut self) {
        self.tag("events", "What happened, and who did it");
        let text = || json!({ "type": "string" });
        for (base, ids, whose) in [
            ("/v1/tenants/{tenant}", "event", "of a tenant"),
            ("/v1", "global_event", "everywhere (operators)"),
        ] {
            let truth = json!({ "type": "boolean", "default": true });
            let stream = Operation::new(format!("{ids}_stream"), "events", format!("What happens {whose}, as it happens"))
                .about(events::ABOUT)
                .query("since", text(), "A number: what came behind it (negative: so many from the end). A time: what was recorded from then on. Without it: what comes from now on.")
                .query("kind", text(), "Only on objects of this kind.")
                .query("resource", text(), "Only on the object of this id.")
                .query("class", text(), "Only of this class.")
                .query("follow", truth, "`false` ends the stream where the log ends now.")
                .header("Last-Event-ID", "As `since`, and stands over it: browsers send it when they come back.")
                .problems(&[410])
                .answers_as(200, "Server-sent events; each `data` is an Event.", "text/event-stream", text(), &[]);
            self.route(Method::GET, &format!("{base}/events"), stream, events::stream);
            let time = || json!({ "type": "string", "format": "date-time" });
            let audit = paged(Operation::new(
                ids.replace("event", "audit"),
                "events",
                format!("Who did what, and who was denied what, {whose}; the newest first"),
            ))
            .query("actor", text(), "Only by this one.")
            .query("resource", text(), "Only on the object of this id.")
            .query("kind", text(), "Only on objects of this kind.")
            .query("verb", text(), "Only this.")
            .query("outcome", text(), "Only with this outcome: `accepted`, `done`, `denied`.")
            .query("since", time(), "Recorded at this moment or later.")
            .query("until", time(), "Recorded before this moment.")
            .answers(200, "A page.", reference("AuditPage"));
            self.route(Method::GET, &format!("{base}/audit"), audit, events::audit);
        }
    }
}

fn list_parameters(op: Operation) -> Operation {
    let order = json!({ "type": "string", "enum": ["id", "name"], "default": "id" });
    let op = paged(op).query("order", order, "`id` is the time of creation. Nothing else is promised.");
    filters(op)
}

/// Filters, and where to go on.
fn filter_parameters(op: Operation) -> Operation {
    let text = json!({ "type": "string" });
    filters(op).query("page", text, "The `next` of the answer before; opaque.")
}

fn filters(op: Operation) -> Operation {
    let text = || json!({ "type": "string" });
    op.query("name", text(), "Only the one of this name.")
        .query("name_prefix", text(), "Only those whose name begins so, in the order of names.")
        .query("phase", text(), "Only those in this phase.")
        .free_query("tag", "tag.", "Only those with this tag.")
        .free_query("metadata", "metadata.", "Only those with this scalar in their metadata.")
}

fn paged(op: Operation) -> Operation {
    let limit =
        json!({ "type": "integer", "format": "int32", "minimum": 1, "maximum": 1000, "default": 100 });
    op.query("limit", limit, "At most so many on a page.").query(
        "page",
        json!({ "type": "string" }),
        "The `next` of the page before; opaque.",
    )
}

/// `machine-types` as `machine types`.
fn words(kebab: &str) -> String {
    kebab.replace('-', " ")
}
