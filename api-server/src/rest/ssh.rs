//! Logging in to instances by certificates: who signs for a tenant, a certificate for whoever may, and a way to the
//! instance's port.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::extract::Ask;
use super::page::bad;
use super::problem::Answer;
use super::{Wanted, console};
use crate::kernel::{Error, FieldError, Kind, Timestamp, ssh};
use crate::store::SshAuthority;

/// `GET /v1/tenants/{tenant}/ssh-ca`
pub async fn authorities(ask: Ask) -> Answer {
    let right = ask.right("get", "ssh-ca")?;
    ask.no_query()?;
    let (hosts, users) = ask.ctx.store.ssh_authorities(&right).await?;
    let known_hosts = believed("*", &hosts);
    let one = |it: SshAuthority| json!({ "public_key": it.public_key, "fingerprint": it.fingerprint });
    let body = json!({
        "tenant": ask.tenant(), "hosts": one(hosts), "users": one(users), "known_hosts": known_hosts,
    });
    Ok(Json(body).into_response())
}

/// The line for a file of known hosts.
fn believed(names: &str, hosts: &SshAuthority) -> String {
    format!("@cert-authority {names} {}", hosts.public_key)
}

/// `POST .../{id}/ssh-certificate`
pub async fn certificate(mut ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("ssh", kind.meta().kind)?;
    ask.no_query()?;
    ask.no_key("a certificate is not good for long: each time that you ask, you get another one")?;
    let wanted = wanted(&ask.json(false).await?)?;
    let made = ask.ctx.store.ssh_certificate(&right, kind, ask.id()?, wanted, ask.asked()).await?;
    let (id, certificate) = (&made.object.core.id, &made.certificate);
    let time = |seconds: u64| Timestamp(i64::try_from(seconds.saturating_mul(1_000_000)).unwrap_or(i64::MAX));
    let body = json!({
        "certificate": certificate.line,
        "serial": made.serial.to_string(), "key_id": made.key_id, "principals": [id],
        "valid_after": time(certificate.valid_after), "valid_before": time(certificate.valid_before),
        "host_key_alias": id, "known_hosts": believed(id, &made.hosts),
    });
    let mut answer = (StatusCode::CREATED, Json(body)).into_response();
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

/// Whose key, and for how long; all that is wrong is told.
fn wanted(body: &Value) -> Result<(ssh_key::PublicKey, u32), Error> {
    let mut errors = Vec::new();
    for strange in body.as_object().into_iter().flat_map(|all| all.keys()) {
        if !["public_key", "valid_seconds"].contains(&strange.as_str()) {
            errors.push(FieldError::new(strange.clone(), "there is no such field"));
        }
    }
    let (least, usual, most) = ssh::SECONDS;
    let seconds = match body.get("valid_seconds") {
        None => Some(usual),
        Some(said) => said.as_u64().and_then(|said| u32::try_from(said).ok()),
    };
    let seconds = seconds.filter(|seconds| (least..=most).contains(seconds));
    if seconds.is_none() {
        errors.push(FieldError::new("valid_seconds", format!("must be {least} to {most}")));
    }
    let key = match body.get("public_key").and_then(Value::as_str) {
        Some(text) => ssh::parse_public(text),
        None => Err("must be your public key as OpenSSH writes it: `ssh-ed25519 AAAA...`".to_owned()),
    };
    match (key, seconds) {
        (Ok(key), Some(seconds)) if errors.is_empty() => Ok((key, seconds)),
        (key, _) => {
            errors.extend(key.err().map(|reason| FieldError::new("public_key", reason)));
            errors.sort();
            Err(Error::Invalid(errors))
        }
    }
}

/// `GET .../{id}/tunnel`
pub async fn tunnel(ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("ssh", kind.meta().kind)?;
    ask.query(&["port"])?;
    let port = match ask.parameter("port").map(str::parse) {
        None => ssh::PORT,
        Some(Ok(port)) if port > 0 => port,
        Some(_) => return Err(bad("port", "must be a TCP port, 1 to 65535")),
    };
    console::lend(ask, kind, &right, Wanted::Port(port)).await
}

/// Schemas of the answers.
pub fn schemas() -> [(&'static str, Value); 3] {
    let text = |about: &str| json!({ "type": "string", "description": about });
    let time = |about: &str| json!({ "type": "string", "format": "date-time", "description": about });
    let one = json!({
        "type": "object", "required": ["public_key", "fingerprint"],
        "properties": {
            "public_key": text("One line, as OpenSSH reads it."),
            "fingerprint": text("As `ssh-keygen -l` prints it."),
        },
    });
    let both = json!({
        "type": "object", "required": ["tenant", "hosts", "users", "known_hosts"],
        "properties": {
            "tenant": { "type": "string" },
            "hosts": super::schemas::reference("SshAuthority"),
            "users": super::schemas::reference("SshAuthority"),
            "known_hosts": text("For a file of known hosts: with this line nobody is asked about a host of this tenant."),
        },
    });
    let certificate = json!({
        "type": "object",
        "required": [
            "certificate", "serial", "key_id", "principals", "valid_after", "valid_before", "host_key_alias", "known_hosts",
        ],
        "properties": {
            "certificate": text("One line: for a file beside the private key, whose name ends with `-cert.pub`."),
            "serial": text("Its number."),
            "key_id": text("What the instance's sshd writes into its log: who asked, and in which request."),
            "principals": { "type": "array", "items": { "type": "string" }, "description": "The instance's id." },
            "valid_after": time("Good from then on."),
            "valid_before": time("Good until then. A login that has begun goes on."),
            "host_key_alias": text("For `HostKeyAlias`: the name by which the instance's own certificate is told from all others."),
            "known_hosts": text("For a file of known hosts: with this line nobody is asked about this instance."),
        },
    });
    [("SshAuthority", one), ("SshAuthorities", both), ("SshCertificate", certificate)]
}

/// Schema of the body.
pub fn body() -> Value {
    let (least, usual, most) = ssh::SECONDS;
    json!({
        "type": "object", "additionalProperties": false, "required": ["public_key"],
        "properties": {
            "public_key": { "type": "string", "maxLength": 16384, "description": "Yours, one line, as OpenSSH writes it." },
            "valid_seconds": {
                "type": "integer", "format": "int32", "minimum": least, "maximum": most, "default": usual,
                "description": "For so long one can log in by it.",
            },
        },
    })
}
