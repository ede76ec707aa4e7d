//! `POST .../{id}/actions/{verb}`

use serde_json::{Map, Value, json};

use super::extract::Ask;
use super::plan;
use super::problem::{Answer, Problem};
use super::write::{How, Manner, write};
use crate::kernel::resource::{Action, Call, Choice};
use crate::kernel::{Error, FieldError, Kind};
use crate::store::Write;

/// How long the graceful way may take at most.
pub const LONGEST_DEADLINE: u64 = 86_400;

/// Does one of the kind's own verbs.
pub async fn act(mut ask: Ask, kind: &'static dyn Kind, action: &'static Action) -> Answer {
    let right = ask.right(action.verb, kind.meta().kind)?;
    ask.only_plan()?;
    let if_match = ask.if_match()?;
    let body = ask.json(true).await?;
    let (call, supersede) = match read(kind, action.verb, &body) {
        Ok(call) => call,
        Err(problem) => return plan::refused(&ask, problem),
    };
    let asked = Write::Act { kind, id: ask.id()?.to_owned(), call, supersede, if_match };
    write(&ask, &right, asked, Manner::of(&ask, kind, How::Change)).await
}

/// What a body says of an action.
pub fn read(kind: &dyn Kind, verb: &str, body: &Value) -> Result<(Call, bool), Problem> {
    let mut call = Call { verb: verb.to_owned(), ..Call::default() };
    let (mut supersede, mut errors) = (false, Vec::new());
    for (key, value) in body.as_object().into_iter().flat_map(Map::iter) {
        let wrong = match (key.as_str(), value) {
            (_, Value::Null) if matches!(key.as_str(), "mode" | "deadline_seconds" | "supersede") => None,
            ("mode", Value::String(mode)) if mode == "graceful" => None,
            ("mode", Value::String(mode)) if mode == "hard" => {
                call.hard = true;
                None
            }
            ("mode", _) => Some("must be `graceful` or `hard`".to_owned()),
            ("deadline_seconds", value) => {
                let deadline = value.as_u64().filter(|seconds| (1..=LONGEST_DEADLINE).contains(seconds));
                call.deadline_seconds = deadline.and_then(|seconds| u32::try_from(seconds).ok());
                deadline.is_none().then(|| format!("must be a whole number from 1 to {LONGEST_DEADLINE}"))
            }
            ("supersede", Value::Bool(wanted)) => {
                supersede = *wanted;
                None
            }
            ("supersede", _) => Some("must be true or false".to_owned()),
            (field, value) if let Some(choice) = choice(kind, verb, field) => {
                let word = value.as_str().filter(|word| choice.words.contains(word));
                call.choices.extend(word.map(|word| (field.to_owned(), word.to_owned())));
                word.is_none().then(|| format!("must be `{}`", choice.words.join("` or `")))
            }
            _ => Some("there is no such field".to_owned()),
        };
        errors.extend(wrong.map(|reason| FieldError::new(key, reason)));
    }
    if call.hard && call.deadline_seconds.is_some() {
        errors.push(FieldError::new("deadline_seconds", "is for `mode: graceful` only"));
    }
    if errors.is_empty() { Ok((call, supersede)) } else { Err(Error::Invalid(errors).into()) }
}

/// The body of an action.
pub fn call_schema(kind: &dyn Kind, verb: &str) -> Value {
    let mut schema = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "mode": { "type": "string", "enum": ["graceful", "hard"], "default": "graceful" },
            "deadline_seconds": {
                "type": "integer", "format": "int32", "minimum": 1, "maximum": LONGEST_DEADLINE,
                "description": "How long the graceful way may take.",
            },
            "supersede": { "type": "boolean", "default": false, "description": "Cancels the jobs that wait." },
        },
        "not": {
            "required": ["mode", "deadline_seconds"],
            "properties": { "mode": { "const": "hard" } },
        },
    });
    for choice in kind.choices().iter().filter(|choice| choice.verb == verb) {
        schema["properties"][choice.field] = json!({
            "type": "string", "enum": choice.words, "default": choice.words[0], "description": choice.about,
        });
    }
    schema
}

fn choice(kind: &dyn Kind, verb: &str, field: &str) -> Option<&'static Choice> {
    kind.choices().iter().find(|choice| choice.verb == verb && choice.field == field)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(verb: &str, body: &Value) -> Result<(Call, bool), Problem> {
        super::read(crate::resources::registry().get("tenant").unwrap(), verb, body)
    }

    #[test]
    fn graceful_unless_told_otherwise() {
        let (call, supersede) = read("stop", &json!({})).unwrap();
        assert!(!call.hard && !supersede && call.deadline_seconds.is_none());
        let (call, supersede) = read("stop", &json!({"mode": "hard", "supersede": true})).unwrap();
        assert!(call.hard && supersede);
        let (call, _) = read("stop", &json!({"deadline_seconds": 5})).unwrap();
        assert_eq!(call.deadline_seconds, Some(5));
    }

    #[test]
    fn a_choice_is_one_of_its_words() {
        let (call, _) = read("suspend", &json!({"instances": "keep"})).unwrap();
        assert_eq!(call.choices["instances"], "keep");
        assert!(read("suspend", &json!({"instances": "maybe"})).is_err());
        assert!(read("resume", &json!({"instances": "keep"})).is_err(), "it is no choice of this verb");
    }

    #[test]
    fn all_that_is_wrong_is_told() {
        let bad = json!({"mode": "soft", "deadline_seconds": 0, "supersede": 1, "now": true});
        let problem = read("stop", &bad).unwrap_err().body("r");
        assert_eq!(problem["errors"].as_array().unwrap().len(), 4, "{problem}");
        assert!(read("stop", &json!({"mode": "hard", "deadline_seconds": 1})).is_err());
    }
}
