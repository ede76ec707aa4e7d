//! Lists: the query of one, and a page of it.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::extract::Ask;
use super::problem::Problem;
use crate::store::ListQuery;

const USUAL: i64 = 100;
const MOST: i64 = 1000;

/// All parameters of a list of resources.
pub const LIST: &[&str] = &["name", "name_prefix", "phase", "tag.", "metadata.", "limit", "page", "order"];

/// The query of a list of resources.
pub fn list_query(ask: &Ask) -> Result<ListQuery, Problem> {
    let words = ask.query(LIST)?;
    let mut query = filters(ask);
    match words.get("order").map(String::as_str) {
        None => {}
        Some("name") => query.by_name = true,
        Some("id") if query.by_name => {
            return Err(bad("order", "must be `name` with `name_prefix`, or left out"));
        }
        Some("id") => {}
        Some(other) => return Err(bad("order", &format!("must be `id` or `name`, not `{other}`"))),
    }
    query.after = after(ask, order(&query))?;
    query.limit = limit(ask)?;
    Ok(query)
}

/// The letter that tells cursors of different orders apart.
pub fn order(query: &ListQuery) -> &'static str {
    if query.by_name { "n" } else { "i" }
}

/// What a query, which was looked at before, filters by.
pub fn filters(ask: &Ask) -> ListQuery {
    let text = |key: &str| ask.parameter(key).map(str::to_owned);
    let labels = ask
        .parameters()
        .filter(|(key, _)| key.starts_with("tag.") || key.starts_with("metadata."))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    ListQuery {
        name: text("name"),
        // Those of one prefix stand together by name, and nowhere else.
        by_name: ask.parameter("name_prefix").is_some(),
        name_prefix: text("name_prefix"),
        phase: text("phase"),
        labels,
        ..ListQuery::default()
    }
}

/// `limit`, or the usual.
pub fn limit(ask: &Ask) -> Result<i64, Problem> {
    let Some(text) = ask.parameter("limit") else { return Ok(USUAL) };
    let limit = text.parse().ok().filter(|limit| (1..=MOST).contains(limit));
    limit.ok_or_else(|| bad("limit", &format!("must be a number from 1 to {MOST}")))
}

/// Where `page` says that the last one ended. `order` tells cursors of different orders apart.
pub fn after(ask: &Ask, order: &str) -> Result<Option<String>, Problem> {
    let Some(text) = ask.parameter("page") else { return Ok(None) };
    let place = BASE64_URL_SAFE_NO_PAD
        .decode(text)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|place| place.strip_prefix(order)?.strip_prefix(' ').map(str::to_owned));
    place.map(Some).ok_or_else(|| bad("page", "must be the `next` of an answer to the same list"))
}

/// Where the next page begins, for whoever need not know.
pub fn cursor(place: &str, order: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(format!("{order} {place}"))
}

/// The body of a page.
pub fn page(items: Vec<Value>, next: Option<String>, order: &str) -> Value {
    let next = next.map(|place| cursor(&place, order));
    json!({ "items": items, "next": next })
}

/// A parameter that cannot be read.
pub fn bad(parameter: &str, reason: &str) -> Problem {
    let error = crate::kernel::FieldError::new(format!("?{parameter}"), reason);
    Problem::new("malformed", format!("`{parameter}` {reason}")).errors(vec![error])
}
