//! Waiting for a job, with a line that says how far it is.

use std::time::{Duration, Instant};

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};
use rhyzome_client::{Client, Job};

use crate::output;

/// The path of a job of this tenant; of operators' own when it is empty.
pub fn job_path(tenant: &str, id: &str) -> String {
    if tenant.is_empty() { format!("/v1/jobs/{id}") } else { format!("/v1/tenants/{tenant}/jobs/{id}") }
}

/// Waits until the job is final, `seconds` at most. A job that did not succeed is an error.
pub async fn wait(client: &Client, tenant: &str, id: &str, what: &str, seconds: u64) -> anyhow::Result<Job> {
    let line = spinner(what);
    let path = job_path(tenant, id);
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        let left = end.saturating_duration_since(Instant::now()).as_secs();
        // Short, so that the line moves with the steps.
        let job = client.wait(&path, left.min(2)).await;
        let job = job.inspect_err(|_| line.finish_and_clear())?;
        if job.is_final() {
            line.finish_and_clear();
            return ended(job);
        }
        line.set_message(format!("{what}: {}", now(&job)));
        if left == 0 {
            line.finish_and_clear();
            bail!("{what} is not done after {seconds} s and goes on\n  `rhyzome job wait {id}` waits on");
        }
    }
}

fn ended(job: Job) -> anyhow::Result<Job> {
    if job.state == "done" {
        return Ok(job);
    }
    let why = job.problem.clone().unwrap_or_else(|| "no reason is given".into());
    let failed =
        job.steps.iter().find(|step| step.state == "failed").map(|step| output::describe(&step.what));
    let at = failed.map(|step| format!(" at `{step}`")).unwrap_or_default();
    let mut text = format!("{} of {} {} {}{at}: {why}", job.verb, job.kind, job.resource_name, job.state);
    for left in &job.left_behind {
        text.push_str(&format!("\n  left behind: {left}"));
    }
    let global = if job.tenant.is_empty() { " --global" } else { "" };
    bail!(
        "{text}\n  `rhyzome job show {id}{global}` has more, `rhyzome job retry {id}{global}` tries again",
        id = job.id
    );
}

fn now(job: &Job) -> String {
    let Some(step) = job.steps.iter().find(|step| !matches!(step.state.as_str(), "done" | "undone")) else {
        return job.state.clone();
    };
    let mut text = output::describe(&step.what);
    if let Some(percent) = step.progress.filter(|percent| *percent > 0.0) {
        text.push_str(&format!(" {percent:.0} %"));
    }
    if !step.message.is_empty() {
        text.push_str(&format!(" ({})", step.message));
    }
    text
}

fn spinner(what: &str) -> ProgressBar {
    let line = ProgressBar::new_spinner().with_message(what.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
        line.set_style(style);
    }
    line.enable_steady_tick(Duration::from_millis(100));
    line
}

/// A bar for so many bytes.
pub fn bytes_bar(what: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total).with_message(what.to_owned());
    let template = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(state: &str) -> Job {
        serde_json::from_value(json!({
            "id": "job_1", "tenant": "acme", "kind": "instance", "resource_name": "web", "verb": "create",
            "state": state, "problem": "no disk left",
            "steps": [
                {"what": {"do": "assign", "who": {"id": "disk_1"}}, "state": "done"},
                {"what": {"do": "await_applied", "who": "this"}, "state": "failed", "message": "half", "progress": 50},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn a_failed_job_is_an_error_with_the_way_on() {
        let said = ended(job("failed")).unwrap_err().to_string();
        assert!(
            said.starts_with("create of instance web failed at `await applied this`: no disk left"),
            "{said}"
        );
        assert!(said.contains("rhyzome job retry job_1"), "{said}");
        assert!(ended(job("done")).is_ok());
    }

    #[test]
    fn the_line_says_the_present_step() {
        assert_eq!(now(&job("running")), "await applied this 50 % (half)");
    }
}
