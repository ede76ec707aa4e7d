//! What a tenant's claims say of the certificate that was given for its domain: when it ends, and how far that was told.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Timestamp;

/// Where it is kept.
pub const GIVEN: &str = "certificate";

const DAY: i64 = 24 * 3600;
/// It is told that it ends soon when so many seconds are left, and once more when so many are.
const SOON: i64 = 14 * DAY;
const AGAIN: i64 = 2 * DAY;

/// How near its end a certificate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Not near.
    Good,
    /// Less than 14 days are left.
    Soon,
    /// Less than 2 days are left.
    VerySoon,
    /// None is left.
    Over,
}

/// A certificate that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// When it ends.
    pub until: Timestamp,
    /// What was told of that.
    pub told: Stage,
}

impl Stage {
    /// At this moment, of one that ends then.
    pub fn at(now: Timestamp, until: Timestamp) -> Stage {
        let all = [Stage::Over, Stage::VerySoon, Stage::Soon];
        all.into_iter().find(|stage| stage.begins(until) <= now).unwrap_or(Stage::Good)
    }

    /// When this stage begins.
    fn begins(self, until: Timestamp) -> Timestamp {
        match self {
            Stage::Good => Timestamp(i64::MIN),
            Stage::Soon => until.plus_seconds(-SOON),
            Stage::VerySoon => until.plus_seconds(-AGAIN),
            Stage::Over => until,
        }
    }
}

impl Given {
    /// What was kept of it.
    pub fn kept(claims: &Map<String, Value>) -> Option<Given> {
        Given::deserialize(claims.get(GIVEN)?).ok()
    }

    /// Keeps it.
    pub fn keep(self, claims: &mut Map<String, Value>) {
        claims.insert(GIVEN.to_owned(), json!(self));
    }

    /// When there is more to tell; `None`: all was told.
    pub fn next(self) -> Option<Timestamp> {
        let next = match self.told {
            Stage::Good => Stage::Soon,
            Stage::Soon => Stage::VerySoon,
            Stage::VerySoon => Stage::Over,
            Stage::Over => return None,
        };
        Some(next.begins(self.until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_comes_in_three_steps() {
        let until = Timestamp(0).plus_seconds(100 * DAY);
        let mut given = Given { until, told: Stage::Good };
        for (day, stage, next) in [
            (85, Stage::Good, Some(86)),
            (86, Stage::Soon, Some(98)),
            (98, Stage::VerySoon, Some(100)),
            (100, Stage::Over, None),
            (5000, Stage::Over, None),
        ] {
            given.told = Stage::at(Timestamp(0).plus_seconds(day * DAY), until);
            assert_eq!(given.told, stage, "{day}");
            assert_eq!(given.next(), next.map(|day| Timestamp(0).plus_seconds(day * DAY)), "{day}");
            let mut claims = Map::new();
            given.keep(&mut claims);
            assert_eq!(Given::kept(&claims), Some(given));
        }
    }
}
