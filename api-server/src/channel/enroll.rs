//! Enrolment: trades a join token and a signing request for a certificate, or one that has run out for a new one.
use super::ChannelContext;
use super::caller::status_of;
use super::door::{SessionDoor, ToReturning};
use crate::kernel::join::hash_of;
use rhyzome_pki::{Authority, SignedLeaf};
use rhyzome_proto::v1::enrollment_server::Enrollment;
use rhyzome_proto::v1::{JoinRequest, JoinResponse, ReturnMessage};
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

pub(super) struct Enroll {
    pub(super) context: Arc<ChannelContext>,
    pub(super) door: SessionDoor,
}

/// A certificate for a node that has proven who it is, recorded so that it can be revoked.
pub(super) async fn certify(
    context: &ChannelContext,
    node: &str,
    csr_pem: &str,
) -> Result<SignedLeaf, Status> {
    let signed = context.authority.sign_node_csr(csr_pem, node, context.now());
    let leaf = signed.map_err(|error| Status::invalid_argument(error.to_string()))?;
    let recorded = context.store.record_certificate(&leaf.serial_hex, node, leaf.not_after.into());
    recorded.await.map_err(|error| status_of(&error))?;
    Ok(leaf)
}

#[tonic::async_trait]
impl Enrollment for Enroll {
    type ReturnStream = ToReturning;

    async fn r#return(
        &self,
        request: Request<Streaming<ReturnMessage>>,
    ) -> Result<Response<Self::ReturnStream>, Status> {
        let from = request.remote_addr().map(|address| address.to_string()).unwrap_or_default();
        Ok(Response::new(self.door.come_back(from, request.into_inner())))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let context = &self.context;
        let from = request.remote_addr().map(|address| address.to_string()).unwrap_or_default();
        let request = request.into_inner();
        // First what costs the token nothing: a bad request must not use it up.
        Authority::check_csr(&request.csr_pem)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let hash = hash_of(&request.token);
        let redeemed = context.store.redeem_join_token(&hash, &request.node_name).await;
        let node = match redeemed.map_err(|error| status_of(&error))? {
            Ok(node) => node,
            Err(reason) => {
                tracing::warn!(node = request.node_name, from, %reason, "a machine may not join");
                // Whether a token exists, was used, or is another node's is nobody's business who has none.
                return Err(Status::permission_denied(
                    "this join token is not good for this node (unknown, used, expired, or made for another name); ask an operator for a new one",
                ));
            }
        };
        let leaf = certify(context, &node, &request.csr_pem).await?;
        tracing::info!(node, name = request.node_name, from, agent = request.agent_version, "a node joined");
        Ok(Response::new(JoinResponse {
            node_id: node,
            cluster_id: context.authority.cluster_id().to_owned(),
            certificate_chain_pem: leaf.chain_pem,
            trust_pem: context.authority.trust_pem(),
        }))
    }
}
