//! Every statement that the store says on this thread, while somebody wants to know: for what plans it has, and how
//! many there are.

use std::cell::RefCell;
use std::sync::Once;

use tracing::field::{Field, Visit};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

thread_local! {
    static STATEMENTS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Keeps them. One for the whole process: what one test listens to must not depend on what others do.
struct Listener;

impl<S: tracing::Subscriber> Layer<S> for Listener {
    fn on_event(&self, event: &tracing::Event<'_>, _context: Context<'_, S>) {
        STATEMENTS.with_borrow_mut(|statements| {
            if let Some(statements) = statements {
                event.record(&mut Visitor(statements));
            }
        });
    }
}

struct Visitor<'a>(&'a mut Vec<String>);

impl Visit for Visitor<'_> {
    fn record_str(&mut self, _field: &Field, value: &str) {
        self.0.push(value.to_owned());
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn std::fmt::Debug) {}
}

/// Listens from now on.
pub fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let only = Targets::new().with_target("rhyzome::sql", tracing::Level::TRACE);
        let subscriber = tracing_subscriber::registry().with(only).with(Listener);
        tracing::subscriber::set_global_default(subscriber).expect("nobody else listens in this process");
    });
    STATEMENTS.set(Some(Vec::new()));
}

/// What was said since, in order.
pub fn heard() -> Vec<String> {
    STATEMENTS.take().unwrap_or_default()
}
