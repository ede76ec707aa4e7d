//! The language between the control plane and its node agents.
//!
//! The `.proto` file beside this crate is the contract; everything here is generated from it at build
//! time, without `protoc`. This crate depends on nothing of ours, and both sides meet only here.

pub mod codec;

/// Messages and services of `rhyzome.v1`.
#[allow(missing_docs, clippy::all, unused_qualifications)]
pub mod v1 {
    tonic::include_proto!("rhyzome.v1");
}

/// Orders are printed in logs and failures of tests; what their secrets stand for never is.
impl std::fmt::Debug for v1::OrderSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OrderSecret").field("marker", &self.marker).field("value", &"(secret)").finish()
    }
}

#[cfg(test)]
mod tests {
    use super::v1::{Order, OrderSecret, ServerMessage, server_message::Message};

    #[test]
    fn an_order_is_printed_without_its_secrets() {
        let secret = OrderSecret { marker: "sealed:sec_1".into(), value: "planted".into() };
        let order = Order { secrets: vec![secret], ..Order::default() };
        let said = format!("{:?}", ServerMessage { message: Some(Message::Order(order)) });
        assert!(said.contains("sealed:sec_1") && !said.contains("planted"), "{said}");
    }
}
