//! How many at the same time, by key. A key of which there is none is not kept.

use std::collections::BTreeMap;

/// How many of each.
#[derive(Debug, Default)]
pub struct Counts(BTreeMap<String, usize>);

impl Counts {
    /// One more, if there are fewer than `most`.
    pub fn add(&mut self, key: &str, most: usize) -> bool {
        match self.0.get_mut(key) {
            Some(count) if *count >= most => false,
            Some(count) => {
                *count += 1;
                true
            }
            None if most == 0 => false,
            None => {
                self.0.insert(key.to_owned(), 1);
                true
            }
        }
    }

    /// One less.
    pub fn remove(&mut self, key: &str) {
        if let Some(count) = self.0.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(key);
            }
        }
    }

    /// How many there are of this.
    pub fn of(&self, key: &str) -> usize {
        self.0.get(key).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_there_may_be() {
        let mut counts = Counts::default();
        assert!(counts.add("a", 2) && counts.add("a", 2) && !counts.add("a", 2) && !counts.add("b", 0));
        counts.remove("a");
        assert_eq!(counts.of("a"), 1);
        counts.remove("a");
        counts.remove("a");
        assert!(counts.0.is_empty());
    }
}
