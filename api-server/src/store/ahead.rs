//! Statements that go with the next one. On SQLite each is a way to the connection's thread and back, which takes longer
//! than what most of them do: so those that answer nothing are said in one text with the one that does.

use std::borrow::Cow;

use super::db::Value;

/// Statements that wait to be said, and their values.
#[derive(Default)]
pub(super) struct Ahead(Vec<(String, Vec<Value>)>);

impl Ahead {
    /// One more waits.
    pub(super) fn push(&mut self, sql: &str, values: &[Value]) {
        self.0.push((sql.to_owned(), values.to_vec()));
    }

    /// The last one, which waits no more.
    pub(super) fn pop(&mut self) -> Option<(String, Vec<Value>)> {
        self.0.pop()
    }

    /// What waited was not meant.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// A statement behind all that waited, in one text, its places numbered on.
    pub(super) fn with<'a>(&mut self, sql: &'a str, values: &'a [Value]) -> (Cow<'a, str>, Cow<'a, [Value]>) {
        if self.0.is_empty() {
            return (sql.into(), values.into());
        }
        let (mut text, mut all) = (String::new(), Vec::new());
        for (sql, values) in std::mem::take(&mut self.0) {
            numbered_from(all.len(), &sql, &mut text);
            text.push_str("; ");
            all.extend(values);
        }
        numbered_from(all.len(), sql, &mut text);
        all.extend_from_slice(values);
        (text.into(), all.into())
    }
}

/// Adds a statement to a text in which so many values come before its own: its `$1` is `$4` if they are three.
fn numbered_from(before: usize, sql: &str, text: &mut String) {
    let mut parts = sql.split('$');
    text.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (number, rest) = part.split_at(part.bytes().take_while(u8::is_ascii_digit).count());
        let place = number.parse::<usize>().map_or_else(|_| number.to_owned(), |n| (n + before).to_string());
        text.push('$');
        text.push_str(&place);
        text.push_str(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::super::db::values;
    use super::*;

    #[test]
    fn what_waits_goes_with_the_next_and_its_places_are_numbered_on() {
        let mut ahead = Ahead::default();
        assert_eq!(ahead.with("COMMIT", &[]).0, "COMMIT");
        ahead.push("UPDATE a SET b = $2 WHERE c = $1", values!["c", "b"]);
        ahead.push("DELETE FROM d", &[]);
        let own = [Value::from("e")];
        let (text, all) = ahead.with("SELECT $1, ($12)", &own);
        assert_eq!(text, "UPDATE a SET b = $2 WHERE c = $1; DELETE FROM d; SELECT $3, ($14)");
        assert_eq!(*all, *values!["c", "b", "e"]);
        assert_eq!(ahead.with("COMMIT", &[]).0, "COMMIT");
    }
}
