//! The lists that are asked for. Each page is full at every size, so that the same rows are answered everywhere.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::fill;

/// A list with its filters.
pub struct Case {
    pub name: &'static str,
    path: &'static str,
    query: &'static str,
    by_name: bool,
    limit: u64,
    /// Which of the crowd match: every `every`-th, from `from` on.
    every: u64,
    from: u64,
    /// True if its filters need a window.
    pub window: bool,
    /// True if its times are taken too.
    pub timed: bool,
    pub places: &'static [Place],
}

/// Where in a list.
#[derive(Clone, Copy)]
pub enum Place {
    First,
    Middle,
    Last,
}

const TENANT: &str = "/v1/tenants/default/instances";
const ALL: &str = "/v1/instances";
const EVERYWHERE: &[Place] = &[Place::First, Place::Middle, Place::Last];

/// A list of the default tenant without a filter: it has every second one of the crowd.
const PLAIN: Case = Case {
    name: "a tenant's",
    path: TENANT,
    query: "",
    by_name: false,
    limit: 100,
    every: 2,
    from: 2,
    window: false,
    timed: false,
    places: EVERYWHERE,
};

/// All of them.
pub const CASES: &[Case] = &[
    Case { timed: true, ..PLAIN },
    Case { name: "a tenant's by name", by_name: true, query: "&order=name", timed: true, ..PLAIN },
    Case { name: "all tenants'", path: ALL, every: 1, from: 1, ..PLAIN },
    Case {
        name: "all tenants' by name",
        path: ALL,
        by_name: true,
        query: "&order=name",
        every: 1,
        from: 1,
        ..PLAIN
    },
    Case {
        name: "a tenant's with a tag",
        query: "&tag.env=prod",
        every: 6,
        from: 6,
        limit: 40,
        timed: true,
        ..PLAIN
    },
    Case {
        name: "all tenants' with a tag",
        path: ALL,
        query: "&tag.env=prod",
        every: 3,
        from: 3,
        limit: 80,
        ..PLAIN
    },
    Case { name: "a tenant's in a phase", query: "&phase=running", ..PLAIN },
    Case {
        name: "all tenants' in a phase",
        path: ALL,
        query: "&phase=stopped",
        every: 10,
        from: 3,
        limit: 20,
        ..PLAIN
    },
    Case {
        name: "a tenant's with metadata",
        query: "&metadata.team=8",
        every: 1000,
        from: 8,
        limit: 1,
        places: &[Place::First],
        ..PLAIN
    },
    Case { name: "a tenant's with a prefix", by_name: true, query: "&name_prefix=crowd-0", ..PLAIN },
    Case {
        name: "a tenant's of a name",
        query: "&name=crowd-0000000010",
        limit: 1,
        places: &[Place::First],
        ..PLAIN
    },
    Case {
        name: "a tenant's in a phase by name",
        by_name: true,
        query: "&phase=running&order=name",
        window: true,
        ..PLAIN
    },
    Case {
        name: "a tenant's with a tag in a phase",
        query: "&tag.env=prod&phase=running",
        every: 6,
        from: 6,
        window: true,
        ..PLAIN
    },
    Case {
        name: "a tenant's with a tag by name",
        by_name: true,
        query: "&tag.env=prod&order=name",
        every: 6,
        from: 6,
        window: true,
        ..PLAIN
    },
    Case {
        name: "all tenants' with a tag by name",
        path: ALL,
        by_name: true,
        query: "&tag.env=prod&order=name",
        every: 3,
        from: 3,
        window: true,
        ..PLAIN
    },
    Case {
        name: "a rare phase by name",
        path: ALL,
        by_name: true,
        query: "&phase=failed&order=name",
        every: 1000,
        from: 7,
        window: true,
        places: &[Place::First],
        ..PLAIN
    },
    Case {
        name: "a tag and one of its own",
        query: "&tag.env=prod&tag.nr=0000000006",
        every: 6,
        from: 6,
        window: true,
        places: &[Place::First],
        ..PLAIN
    },
];

impl Place {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Place::First => "first",
            Place::Middle => "middle",
            Place::Last => "last",
        }
    }
}

impl Case {
    /// The path of this page of a crowd of so many.
    pub fn path(&self, place: Place, rows: u64) -> String {
        let matching = (rows - self.from) / self.every + 1;
        let before = match place {
            Place::First => 0,
            Place::Middle => matching / 2,
            Place::Last => matching - self.limit,
        };
        let page = match before {
            0 => String::new(),
            before => format!("&page={}", self.cursor(self.from + (before - 1) * self.every)),
        };
        format!("{}?limit={}{}{page}", self.path, self.limit, self.query)
    }

    /// The cursor behind the `number`-th of the crowd.
    fn cursor(&self, number: u64) -> String {
        let id = fill::id(number);
        let place = if self.by_name { format!("n crowd-{number:010} {id}") } else { format!("i {id}") };
        BASE64_URL_SAFE_NO_PAD.encode(place)
    }
}
