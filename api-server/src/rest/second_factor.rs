//! A second factor beside a password: where the code is looked for in a request, and `/v1/second-factor`, where people
//! make, confirm and drop their own.

use axum::Json;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::RestContext;
use super::extract::Ask;
use super::problem::{Answer, Problem};
use crate::kernel::caller::SecondFactor;
use crate::kernel::{Caller, Error, Kind, totp};
use crate::store::{Owed, Proven};

/// Where the code is, in a request.
pub const HEADER: &str = "x-rhyzome-otp";
const PATH: &str = "/v1/second-factor";

/// Refuses whoever owes a code and does not show a good one.
pub async fn demand(ctx: &RestContext, said: &Caller, parts: &Parts) -> Result<(), Problem> {
    match ctx.store.owed(said).await? {
        Owed::Nothing => Ok(()),
        Owed::Enrolment if enrols(parts) => Ok(()),
        Owed::Enrolment => Err(missing(
            "you must have a second factor: `rhyzome totp enrol`, or POST /v1/second-factor and confirm it",
            "enrol",
        )),
        Owed::Code => {
            let given = parts.headers.get(HEADER).and_then(|value| value.to_str().ok());
            let given = given.map(str::trim).filter(|given| !given.is_empty() && given.len() <= 64);
            let Some(given) = given else {
                let text = "the password is right; send the code that your app shows in `X-Rhyzome-OTP`, or a recovery code";
                return Err(missing(text, "code"));
            };
            match ctx.store.prove_second(said, given).await? {
                Proven::Right => Ok(()),
                Proven::Wrong => Err(missing(
                    "this code is not good, or was used before: each counts once; wait for the next one",
                    "code",
                )),
                Proven::TooMany(seconds) => {
                    let text = format!("there were too many wrong codes: try again in {seconds} s");
                    Err(missing(&text, "code").header(RETRY_AFTER, &seconds.to_string()))
                }
            }
        }
    }
}

fn missing(text: &str, what: &str) -> Problem {
    Problem::new("second-factor", text)
        .with("missing", json!(what))
        .header(WWW_AUTHENTICATE, "OTP realm=\"rhyzome\", header=\"X-Rhyzome-OTP\"")
}

/// What is open to whoever must enrol: to do it, and to see who they are.
fn enrols(parts: &Parts) -> bool {
    let path = parts.uri.path();
    let confirm = path.strip_prefix(PATH) == Some("/confirm") && parts.method == Method::POST;
    let own = path == PATH && (parts.method == Method::GET || parts.method == Method::POST);
    own || confirm || (path == "/v1/whoami" && parts.method == Method::GET)
}

/// `GET /v1/second-factor`
pub async fn show(ask: Ask) -> Answer {
    ask.no_query()?;
    let caller = ask.caller();
    let state = match caller.second_factor {
        Some(_) => ask.ctx.store.second_factor(caller).await?,
        None => Default::default(),
    };
    let body = json!({
        "enrolled": state.confirmed_at.is_some(), "confirmed_at": state.confirmed_at,
        "recovery_codes": state.recovery_codes, "required": caller.second_factor == Some(SecondFactor::Required),
    });
    Ok(Json(body).into_response())
}

/// `POST /v1/second-factor`
pub async fn enrol(mut ask: Ask) -> Answer {
    ask.no_query()?;
    ask.no_key("a key that is made is shown once, and kept with no answer")?;
    ask.no_body().await?;
    let caller = ask.caller();
    let key = ask.ctx.store.enrol_second(caller, ask.asked()).await?;
    let who = format!("{}@{}", caller.name, caller.authenticator);
    let body = json!({ "secret": totp::base32(&key), "uri": totp::uri(&who, &key) });
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

/// `POST /v1/second-factor/confirm`
pub async fn confirm(mut ask: Ask) -> Answer {
    ask.no_query()?;
    ask.no_key("codes that are made are shown once, and kept with no answer")?;
    let body = ask.json(true).await?;
    let strange = body.as_object().and_then(|all| all.keys().find(|key| *key != "code"));
    if let Some(strange) = strange {
        return Err(Error::field(strange.clone(), "is not known here; `code` is").into());
    }
    let code = body.get("code").and_then(Value::as_str).filter(|code| totp::looks_like_one(code));
    let caller = ask.caller();
    // Who came by something else hears that first: no code would help.
    let code = code.unwrap_or_default();
    if code.is_empty() && caller.second_factor.is_some() {
        return Err(Error::field("code", "must be the six digits that the app shows").into());
    }
    let codes = ask.ctx.store.confirm_second(caller, code, ask.asked()).await?;
    let codes: Vec<&str> = codes.iter().map(|code| code.reveal()).collect();
    Ok(Json(json!({ "recovery_codes": codes })).into_response())
}

/// `DELETE /v1/second-factor`
pub async fn drop_own(mut ask: Ask) -> Answer {
    ask.no_query()?;
    ask.no_body().await?;
    ask.ctx.store.drop_second(ask.caller(), ask.asked()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `DELETE /v1/users/{id}/second-factor`
pub async fn drop_of(mut ask: Ask, kind: &'static dyn Kind) -> Answer {
    let right = ask.right("update", "user")?;
    ask.no_query()?;
    ask.no_body().await?;
    let user = ask.ctx.store.get(&right, kind, ask.id()?).await?;
    ask.ctx.store.drop_second_of(ask.caller(), &user.core.id, ask.asked()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
