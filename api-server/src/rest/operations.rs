//! By which name of the document a request is counted.

use std::collections::HashMap;
use std::sync::Arc;

use axum::http::Method;
use serde_json::{Map, Value};

/// A method, and the id of what it does.
type Named = (Method, Arc<str>);

/// Ids of operations, by path and method as the router knows them.
#[derive(Clone)]
pub struct Operations {
    by_path: Arc<HashMap<String, Vec<Named>>>,
    none: Arc<str>,
}

// === impl Operations ===

impl Operations {
    /// Of a document's paths.
    pub fn of(paths: &Map<String, Value>) -> Operations {
        let named = |methods: &Value| {
            let all = methods.as_object().into_iter().flatten();
            let known = all.filter_map(|(method, operation)| {
                let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes()).ok()?;
                Some((method, Arc::from(operation["operationId"].as_str()?)))
            });
            known.collect()
        };
        let by_path = paths.iter().map(|(path, methods)| (path.clone(), named(methods))).collect();
        Operations { by_path: Arc::new(by_path), none: Arc::from("none") }
    }

    /// The id; `none` for what is in no document.
    pub fn name(&self, path: Option<&str>, method: &Method) -> &Arc<str> {
        let known = path.and_then(|path| self.by_path.get(path));
        // Who answers GET answers HEAD.
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let found = known.into_iter().flatten().find(|(known, _)| known == method);
        found.map_or(&self.none, |(_, name)| name)
    }
}
