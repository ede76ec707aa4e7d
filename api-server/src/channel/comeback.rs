//! The way back in: a node whose certificate ran out while it was away shows it, and proves that it has its key.
//!
//! Whoever calls has shown no certificate to TLS. What is refused is told in one sentence; the log has the reason.
use super::ChannelContext;
use super::caller::status_of;
use super::enroll::certify;
use rhyzome_pki::{Authority, Challenge, FormerNode, PkiError};
use rhyzome_proto::v1::{
    RenewResponse, ReturnAnswer, ReturnClaim, ReturnMessage, ReturnProof, return_answer, return_message,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

/// For each step of the caller.
const STEP: Duration = Duration::from_secs(10);

/// What is answered to a node that comes back.
pub(super) type Answers = mpsc::Sender<Result<ReturnAnswer, Status>>;

fn refuse(reason: &str, who: &str) -> Status {
    tracing::warn!(reason, who, "a node may not come back");
    Status::permission_denied(
        "this certificate brings nobody back (revoked, of another cluster, or without its key); ask an operator to invite the node again",
    )
}

/// Goes through all steps.
pub(super) async fn run(
    context: Arc<ChannelContext>,
    from: String,
    mut steps: impl Stream<Item = Result<ReturnMessage, Status>> + Unpin + Send,
    answers: Answers,
) {
    let all = tokio::time::timeout(STEP * 3, come_back(&context, &from, &mut steps, &answers));
    let status = match all.await {
        Ok(Ok(())) => return,
        Ok(Err(status)) => status,
        Err(_) => Status::deadline_exceeded("it took too long"),
    };
    // Whoever does not read what was said before does not get this either.
    let _ = answers.try_send(Err(status));
}

async fn step(
    steps: &mut (impl Stream<Item = Result<ReturnMessage, Status>> + Unpin),
) -> Result<Option<return_message::Step>, Status> {
    match tokio::time::timeout(STEP, steps.next()).await {
        Ok(Some(Ok(message))) => Ok(message.step),
        Ok(Some(Err(status))) => Err(status),
        Ok(None) | Err(_) => Err(Status::deadline_exceeded("nothing more was said")),
    }
}

async fn come_back(
    context: &ChannelContext,
    from: &str,
    steps: &mut (impl Stream<Item = Result<ReturnMessage, Status>> + Unpin),
    answers: &Answers,
) -> Result<(), Status> {
    let Some(return_message::Step::Claim(ReturnClaim { certificate_chain_pem })) = step(steps).await? else {
        return Err(Status::invalid_argument("the first step is a claim: the certificate that ran out"));
    };
    let former = context.authority.former_node(&certificate_chain_pem, context.now());
    let former = former.map_err(|error| match error {
        // TLS says the same of a time that has not come as of one that is over; then only waiting helps.
        PkiError::TooEarly => Status::unavailable(error.to_string()),
        error => refuse(&error.to_string(), from),
    })?;
    is_welcome(context, &former).await?;
    let challenge = Challenge::new().map_err(|error| Status::unavailable(error.to_string()))?;
    let asked = return_answer::Step::Challenge(challenge.bytes().to_vec());
    say(answers, asked).await?;
    let Some(return_message::Step::Proof(ReturnProof { signature, csr_pem })) = step(steps).await? else {
        return Err(Status::invalid_argument("the second step is a proof: the challenge, signed"));
    };
    if !former.has_signed(&challenge, &signature) {
        return Err(refuse("it has not the key", &former.identity.node_id));
    }
    Authority::check_csr(&csr_pem).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let renewed = renew(context, &former, &csr_pem).await?;
    tracing::info!(
        node = former.identity.node_id,
        from,
        "a node came back with a certificate that had run out"
    );
    say(answers, return_answer::Step::Renewed(renewed)).await
}

async fn say(answers: &Answers, step: return_answer::Step) -> Result<(), Status> {
    let gone = |_| Status::cancelled("the caller is gone");
    answers.send(Ok(ReturnAnswer { step: Some(step) })).await.map_err(gone)
}

/// Not if it was revoked, or its node is gone.
async fn is_welcome(context: &ChannelContext, former: &FormerNode) -> Result<(), Status> {
    let who = &former.identity;
    let refused = context.store.certificate_refused(&who.serial, &who.node_id).await;
    match refused.map_err(|error| status_of(&error))? {
        true => Err(refuse("it was revoked, or its node is gone", &who.node_id)),
        false => Ok(()),
    }
}

async fn renew(
    context: &ChannelContext,
    former: &FormerNode,
    csr_pem: &str,
) -> Result<RenewResponse, Status> {
    let node = &former.identity.node_id;
    let leaf = certify(context, node, csr_pem).await?;
    // Only now, when a revocation would find both: a node revoked in this very moment gets no new one.
    is_welcome(context, former).await?;
    Ok(RenewResponse { certificate_chain_pem: leaf.chain_pem, trust_pem: context.authority.trust_pem() })
}
