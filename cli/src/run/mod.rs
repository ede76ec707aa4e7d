//! What the verbs do.

mod all;
mod api;
mod body;
mod console;
mod crud;
mod events;
mod image;
mod jobs;
mod login;
mod node;
mod quota;
mod snapshot;
mod ssh;
mod totp;
mod webhook;
mod wireguard;

use std::sync::Arc;

use clap::ArgMatches;
use jiff::Timestamp;
use rhyzome_client::{Client, Kind, Kinds, Resource, Settings, Written};

use crate::output::{self, Format};
use crate::settings::{self, Surroundings};

/// What was typed cannot be done.
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// What every verb has at hand.
pub struct Context<'a> {
    /// The kinds of the document.
    pub kinds: &'a Kinds,
    /// The server.
    pub client: Client,
    /// Whose objects are meant.
    pub tenant: String,
    /// The global ones, where a kind has both.
    pub global: bool,
    /// How to print.
    pub format: Format,
    /// For ages.
    pub now: Timestamp,
}

/// Runs what the command line says.
pub async fn run(kinds: &Kinds, matches: &ArgMatches, around: &Surroundings) -> anyhow::Result<()> {
    let (noun, rest) = matches.subcommand().ok_or_else(|| Usage("say what to do; --help helps".into()))?;
    let (verb, leaf) = rest.subcommand().unwrap_or(("", rest));
    let text = |name: &str| leaf.get_one::<String>(name).cloned().unwrap_or_default();
    match noun {
        "login" => return login::login(leaf, around).await,
        "logout" => return login::logout(leaf, around).await,
        crate::command::JOIN => return ssh::join(leaf).await,
        _ => {}
    }
    let chosen = settings::settings(leaf, around)?;
    let client = match chosen.login {
        None => Client::new(&chosen.settings)?,
        Some(profiles) => {
            let kept = login::Kept { profiles, name: chosen.profile, settings: chosen.settings };
            let token = Some(kept.token(None).await?);
            Client::new(&Settings { token, ..kept.settings.clone() })?.renewed_by(Arc::new(kept))
        }
    };
    let context = Context {
        kinds,
        client,
        tenant: text("tenant"),
        global: switch(leaf, "global"),
        format: output::format(&text("output")),
        now: Timestamp::now(),
    };
    match (noun, verb) {
        ("whoami", _) => api::whoami(&context).await,
        ("api", _) => api::raw(&context, leaf).await,
        ("ssh", _) => ssh::run(&context, kind(kinds, "instance")?, leaf).await,
        ("instance", "tunnel") => ssh::tunnel(&context, kind(kinds, noun)?, leaf).await,
        ("totp", verb) => totp::run(&context, verb, leaf).await,
        ("events", _) => events::events(&context, leaf).await,
        ("audit", _) => events::audit(&context, leaf).await,
        ("job", verb) => jobs::run(&context, verb, leaf).await,
        ("image", "import") => image::import(&context, kind(kinds, noun)?, leaf).await,
        ("snapshot", "download") => snapshot::download(&context, kind(kinds, noun)?, leaf).await,
        ("tenant", "quota") => quota::quota(&context, leaf).await,
        ("node", "invite") => node::invite(&context, leaf).await,
        ("node", "revoke") => node::revoke(&context, kind(kinds, noun)?, leaf).await,
        ("node", "guests") => node::guests(&context, leaf).await,
        ("node", "drift") => node::drift(&context, leaf).await,
        ("node", "repair" | "forget") => node::settle(&context, verb, leaf).await,
        ("webhook", "test") => webhook::test(&context, kind(kinds, noun)?, leaf).await,
        ("webhook", "deliveries") => webhook::deliveries(&context, kind(kinds, noun)?, leaf).await,
        ("webhook", "redeliver") => webhook::redeliver(&context, kind(kinds, noun)?, leaf).await,
        ("vpn-network" | "wireguard-peer", "create") => {
            wireguard::create(&context, kind(kinds, noun)?, leaf).await
        }
        ("vpn-network" | "wireguard-peer", "config") => {
            wireguard::config(&context, kind(kinds, noun)?, leaf).await
        }
        ("instance", "log") => console::log(&context, kind(kinds, noun)?, leaf).await,
        ("instance", "console") => console::run(&context, kind(kinds, noun)?, leaf).await,
        _ => crud::run(&context, kind(kinds, noun)?, verb, leaf).await,
    }
}

fn kind<'a>(kinds: &'a Kinds, noun: &str) -> Result<&'a Kind, Usage> {
    kinds.get(noun).ok_or_else(|| Usage(format!("there is no kind `{noun}`")))
}

/// True if this switch is there and was given.
pub fn switch(matches: &ArgMatches, name: &str) -> bool {
    matches.try_get_one::<bool>(name).ok().flatten().copied().unwrap_or(false)
}

/// All values of a flag, if this verb has it.
pub fn texts(matches: &ArgMatches, name: &str) -> Vec<String> {
    matches.try_get_many::<String>(name).ok().flatten().into_iter().flatten().cloned().collect()
}

/// The first value of a flag, if this verb has it and it was given.
pub fn text(matches: &ArgMatches, name: &str) -> Option<String> {
    matches.try_get_one::<String>(name).ok().flatten().cloned()
}

impl Context<'_> {
    /// Where objects of this kind are.
    pub fn path(&self, kind: &Kind) -> String {
        kind.path(&self.tenant, self.global)
    }

    /// Says where there is no such thing, and what lists those that there are.
    pub fn missing(&self, kind: &Kind, name: &str, error: rhyzome_client::Error) -> anyhow::Error {
        if !error.is_not_found() {
            return error.into();
        }
        let of_tenant = kind.of_tenants && !(self.global && kind.of_operators);
        let place = if of_tenant { format!(" in tenant `{}`", self.tenant) } else { String::new() };
        let global = if self.global { " --global" } else { "" };
        let kind = &kind.kind;
        anyhow::anyhow!(
            "there is no {kind} `{name}`{place}\n  `rhyzome {kind} list{global}` shows those that there are"
        )
    }

    /// Prints a resource that was looked at or written.
    pub fn print(&self, resource: &Resource) -> anyhow::Result<()> {
        match self.format {
            Format::Json => say!("{}", serde_json::to_string_pretty(resource)?),
            Format::Name => say!("{}", resource.name),
            Format::Table => say!("{}", output::resource(resource, self.now)),
        }
        Ok(())
    }

    /// Waits for the job of a resource, if `--wait` was given, and tells how it ended.
    pub async fn settle(
        &self,
        written: Written,
        path: &str,
        what: &str,
        leaf: &ArgMatches,
    ) -> anyhow::Result<()> {
        let resource = &written.object;
        let Some(job) = written.job.as_ref().filter(|_| switch(leaf, "wait")) else {
            if self.format == Format::Table {
                self.said(&written, what);
                return Ok(());
            }
            return self.print(resource);
        };
        crate::wait::wait(&self.client, &resource.tenant, job, what, timeout(leaf)).await?;
        let resource: Resource = self.client.get(&format!("{path}/{}", resource.id)).await?;
        self.print(&resource)
    }

    fn said(&self, written: &Written, what: &str) {
        let resource = &written.object;
        say!("{what}: {} {} is {} ({})", resource.kind, resource.name, resource.phase, resource.id);
        for (field, secret) in
            resource.more.get("secrets").and_then(serde_json::Value::as_object).into_iter().flatten()
        {
            say!("  {field}, shown now and never again: {}", secret.as_str().unwrap_or_default());
        }
        if let Some(job) = &written.job {
            let global = if resource.tenant.is_empty() { " --global" } else { "" };
            say!("  job {job}; `rhyzome job wait {job}{global}` waits for it");
        }
    }
}

/// Of `--timeout`, in seconds.
pub fn timeout(leaf: &ArgMatches) -> u64 {
    leaf.try_get_one::<u64>("timeout").ok().flatten().copied().unwrap_or(600)
}
