//! What is logged on this thread, for tests of what a log says: in a runtime of one thread that is all of them.

use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Keeps what is logged until it is dropped.
pub struct Told {
    lines: Lines,
    _guard: DefaultGuard,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Told {
    /// From now on, what a server says that logs `info`.
    pub fn listen() -> Told {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::registry().with(lines.clone().with_filter(LevelFilter::INFO));
        Told { lines, _guard: tracing::subscriber::set_default(subscriber) }
    }

    /// What was said since the last time: one line for each event, its message and its fields.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.lines.0.lock().unwrap())
    }
}

impl<S: tracing::Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _context: Context<'_, S>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // A text has no end of what it can hold: writing to it does not fail.
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}
