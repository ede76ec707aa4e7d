//! One operation of the document.

use axum::http::Method;
use serde_json::{Map, Value, json};

use super::plan;
use super::schemas::reference;

/// Whoever asks, and for whatever: a request that cannot be read, and one by a connection for another name.
const EVERYWHERE: [u16; 2] = [400, 421];

/// What the document says of one route.
pub struct Operation {
    id: String,
    tag: String,
    summary: String,
    description: String,
    parameters: Vec<Value>,
    body: Option<Value>,
    answers: Vec<(u16, Value)>,
    problems: Vec<u16>,
    open: bool,
    plans: bool,
}

// === impl Operation ===

impl Operation {
    /// `id` is unique in the document; `summary` is one line.
    pub fn new(id: impl Into<String>, tag: &str, summary: impl Into<String>) -> Operation {
        Operation {
            id: id.into(),
            tag: tag.to_owned(),
            summary: summary.into(),
            description: String::new(),
            parameters: Vec::new(),
            body: None,
            answers: Vec::new(),
            problems: [&EVERYWHERE[..], &[401, 403, 404, 429, 500, 503]].concat(),
            open: false,
            plans: false,
        }
    }

    /// More than one line.
    pub fn about(mut self, text: &str) -> Operation {
        self.description = text.to_owned();
        self
    }

    /// A parameter of the query.
    pub fn query(mut self, name: &str, schema: Value, about: &str) -> Operation {
        self.parameters.push(json!({ "name": name, "in": "query", "description": about, "schema": schema }));
        self
    }

    /// A header that means something here.
    pub fn header(self, name: &str, about: &str) -> Operation {
        self.header_of(name, json!({ "type": "string" }), about)
    }

    /// A header of this form.
    fn header_of(mut self, name: &str, schema: Value, about: &str) -> Operation {
        self.parameters.push(json!({ "name": name, "in": "header", "description": about, "schema": schema }));
        self
    }

    /// Free parameters under one name: `tag.env=prod`.
    pub fn free_query(mut self, name: &str, prefix: &str, about: &str) -> Operation {
        self.parameters.push(json!({
            "name": name, "in": "query", "description": format!("{about} Each is a parameter of its own: `{prefix}KEY=VALUE`."),
            "style": "form", "explode": true,
            "schema": { "type": "object", "additionalProperties": { "type": "string" } },
        }));
        self
    }

    /// Takes `Prefer: wait` and `Rhyzome-Reason`.
    pub fn waits(self) -> Operation {
        self.header(
            "Prefer",
            "`wait=N` waits up to N (600) seconds for the job: then the final answer comes instead of 202.",
        )
        .reasoned()
        .once()
        .problems(&[409])
    }

    /// Takes `Idempotency-Key`.
    pub fn once(self) -> Operation {
        self.header_of(
            "Idempotency-Key",
            json!({ "type": "string", "pattern": "^[!-~]([ -~]{0,253}[!-~])?$" }),
            "Done once: within 24 hours a retry under the same key is answered with the same bytes.",
        )
        .problems(&[409, 422])
    }

    /// Takes `plan`.
    pub fn plans(mut self) -> Operation {
        self.plans = true;
        self.query(
            "plan",
            json!({ "type": "boolean", "default": false }),
            "True: change nothing, and tell what would happen.",
        )
    }

    /// Takes `Rhyzome-Reason`.
    pub fn reasoned(self) -> Operation {
        self.header("Rhyzome-Reason", "Why, in your words; kept with the job.")
    }

    /// Takes `If-Match`.
    pub fn conditional(self) -> Operation {
        let etag = json!({ "type": "string", "pattern": r#"^(\*|(W/)?"v[0-9]{1,18}(-s[0-9]{1,18})?")$"# });
        self.header_of(
            "If-Match",
            etag,
            "An ETag: refuse with 412 if the object's version is another by now.",
        )
        .problems(&[412])
    }

    /// Takes `plan`, and answers a plan for each object.
    pub fn plans_each(self) -> Operation {
        let about = "True: change nothing, and tell for each what would happen.";
        self.query("plan", json!({ "type": "boolean", "default": false }), about)
    }

    /// Its body.
    pub fn body(
        mut self,
        media: &[&str],
        required: bool,
        schema: Value,
        example: Option<Value>,
    ) -> Operation {
        let mut content = Map::new();
        for media in media {
            let mut entry = json!({ "schema": schema });
            if let Some(example) = &example {
                entry["example"] = example.clone();
            }
            content.insert((*media).to_owned(), entry);
        }
        self.body = Some(json!({ "required": required, "content": content }));
        self.problems(&[408, 413, 415, 422])
    }

    /// An answer without a body.
    pub fn answers_nothing(mut self, status: u16, about: &str) -> Operation {
        self.answers.push((status, json!({ "description": about })));
        self
    }

    /// An answer in JSON.
    pub fn answers(self, status: u16, about: &str, schema: Value) -> Operation {
        self.answers_as(status, about, "application/json", schema, &[])
    }

    /// An answer that is one object: with an ETag.
    pub fn answers_object(self, status: u16, about: &str, schema: Value) -> Operation {
        let headers: &[&str] = if matches!(status, 201 | 202) { &["ETag", "Location"] } else { &["ETag"] };
        self.answers_as(status, about, "application/json", schema, headers)
    }

    /// An answer of any type.
    pub fn answers_as(
        mut self,
        status: u16,
        about: &str,
        media: &str,
        schema: Value,
        headers: &[&str],
    ) -> Operation {
        let mut answer = json!({ "description": about, "content": { media: { "schema": schema } } });
        for name in headers {
            answer["headers"][*name] = json!({ "schema": { "type": "string" } });
        }
        self.answers.push((status, answer));
        self
    }

    /// Problems beyond those that every operation has.
    pub fn problems(mut self, statuses: &[u16]) -> Operation {
        self.problems.extend(statuses);
        self
    }

    /// For anyone, known or not.
    pub fn open(mut self) -> Operation {
        self.open = true;
        self.problems = EVERYWHERE.to_vec();
        self
    }

    /// Its part of the document.
    pub fn render(mut self, method: &Method, path: &str) -> Value {
        let mut parameters = path_parameters(path);
        parameters.append(&mut self.parameters);
        let mut responses = Map::new();
        for (status, answer) in self.answers {
            responses.insert(status.to_string(), answer);
        }
        if self.plans {
            let there = responses
                .entry("200")
                .or_insert(json!({ "description": "With `plan=true`: nothing was done." }));
            there["content"][plan::MEDIA] = json!({ "schema": reference("Plan") });
        }
        self.problems.sort_unstable();
        self.problems.dedup();
        for status in self.problems {
            let name = format!("Problem{status}");
            responses
                .entry(status.to_string())
                .or_insert(json!({ "$ref": format!("#/components/responses/{name}") }));
        }
        let mut operation = json!({ "operationId": self.id, "tags": [self.tag], "summary": self.summary });
        let mut put = |key: &str, value: Value| operation[key] = value;
        if !self.description.is_empty() {
            put("description", json!(self.description));
        }
        if !parameters.is_empty() {
            put("parameters", json!(parameters));
        }
        if let Some(body) = self.body.filter(|_| *method != Method::GET) {
            put("requestBody", body);
        }
        put("responses", Value::Object(responses));
        if self.open {
            put("security", json!([]));
        }
        operation
    }
}

fn path_parameters(path: &str) -> Vec<Value> {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names
        .map(|name| {
            let (about, schema) = match name {
                "tenant" => ("Name of the tenant.", json!({ "type": "string" })),
                "difference" => ("Id of the difference.", json!({ "type": "string" })),
                "number" => ("Number of the delivery.", json!({ "type": "integer", "format": "int64" })),
                "n" => ("Version of the revision.", json!({ "type": "integer", "format": "int64" })),
                _ => ("Its id or its name.", json!({ "type": "string" })),
            };
            json!({ "name": name, "in": "path", "required": true, "description": about, "schema": schema })
        })
        .collect()
}
