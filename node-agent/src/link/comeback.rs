//! The way back in, when the certificate ran out while this node was away: its key proves who it is.
use super::reach::answer;
use super::{Link, LinkError};
use crate::identity::IdentityError;
use rhyzome_proto::v1::{
    RenewResponse, ReturnAnswer, ReturnClaim, ReturnMessage, ReturnProof, return_answer, return_message,
};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;

/// Asks for a new certificate, and keeps it.
pub(super) async fn come_back(link: &Link) -> Result<(), LinkError> {
    let renewed = ask(link).await?;
    link.shared.folder.keep_certificate(&renewed.certificate_chain_pem, &renewed.trust_pem)?;
    link.shared.reload_identity()?;
    tracing::info!("the certificate had run out; this node has a new one");
    Ok(())
}

async fn ask(link: &Link) -> Result<RenewResponse, LinkError> {
    let (folder, server) = (&link.shared.folder, &link.shared.config.server);
    let identity = link.shared.identity();
    let (say, steps) = mpsc::channel(2);
    let claim = ReturnClaim { certificate_chain_pem: folder.chain_pem()? };
    speak(&say, return_message::Step::Claim(claim)).await?;
    let mut answers = link.reach.come_back(identity.clone(), steps).await?;
    let mut next = async || {
        let told = async { answers.next().await.transpose() };
        let told: Option<ReturnAnswer> = answer(told, server).await?;
        told.and_then(|told| told.step).ok_or_else(|| LinkError::Protocol("it says nothing".into()))
    };
    let return_answer::Step::Challenge(challenge) = next().await? else {
        return Err(LinkError::Protocol("it gives no challenge".into()));
    };
    let key = folder.key()?;
    let signature =
        key.sign_challenge(&identity.record.cluster_id, &challenge).map_err(IdentityError::from)?;
    let proof = ReturnProof { signature, csr_pem: key.csr_pem().map_err(IdentityError::from)? };
    speak(&say, return_message::Step::Proof(proof)).await?;
    match next().await? {
        return_answer::Step::Renewed(renewed) => Ok(renewed),
        return_answer::Step::Challenge(_) => Err(LinkError::Protocol("it gives a second challenge".into())),
    }
}

async fn speak(say: &mpsc::Sender<ReturnMessage>, step: return_message::Step) -> Result<(), LinkError> {
    let gone = |_| LinkError::Connection("the server does not listen any more".into());
    say.send(ReturnMessage { step: Some(step) }).await.map_err(gone)
}
