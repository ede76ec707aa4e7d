//! Shows what goes on: a spinner or a bar with the time on a terminal, plain lines elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// One thing that takes a while, in named steps.
pub struct Progress {
    bar: ProgressBar,
    title: String,
    since: Instant,
}

impl Progress {
    /// Begins; `title` is shown before each step.
    pub fn start(title: &str) -> Progress {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}: {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.set_prefix(title.to_owned());
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        Progress { bar, title: title.to_owned(), since: Instant::now() }
    }

    /// Begins something whose end is known: a bar from 0 to 100 percent.
    pub fn bar(title: &str) -> Progress {
        let progress = Progress::start(title);
        progress.bar.set_length(100);
        if let Ok(style) =
            ProgressStyle::with_template("{prefix} [{bar:30}] {percent:>3} % {msg} ({elapsed})")
        {
            progress.bar.set_style(style);
        }
        progress
    }

    /// Says how far it is, and what is done now.
    pub fn at(&self, percent: u64, what: &str) {
        if self.bar.is_hidden() {
            println!("{}: {percent:>3} % {what}", self.title);
        }
        self.bar.set_position(percent);
        self.bar.set_message(what.to_owned());
    }

    /// Says what is done now.
    pub fn step(&self, what: &str) {
        if self.bar.is_hidden() {
            println!("{}: {what}", self.title);
        }
        self.bar.set_message(what.to_owned());
    }

    /// Ends with a line that stays.
    pub fn done(self, what: &str) {
        self.bar.finish_and_clear();
        println!("{}: {what} ({:.1} s)", self.title, self.since.elapsed().as_secs_f32());
    }
}
