//! An image: the bytes that disks start as.
//!
//! Its life: made empty (`pending`), then its content is uploaded, checked and measured (`ready`); after
//! that it never changes. A node fetches it when the first disk there needs it. It cannot be deleted while
//! a disk needs it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kernel::{
    Change, Facts, FieldError, Held, Meta, NameRule, Object, Order, Plan, Resource, Scope, Step, Who,
};

/// An image.
pub struct Image;

/// How long the upload may take.
const UPLOAD_SECONDS: u32 = 3600;

// === spec ===

/// In which format an image is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFormat {
    /// QEMU's own, version 2 or 3, without a backing file.
    #[default]
    Qcow2,
}

/// What the uploaded bytes will be.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"format": "qcow2"}))]
pub struct ImageSpec {
    /// The format of the content: told, never guessed.
    #[serde(default)]
    pub format: ImageFormat,
    /// The SHA-256 that the content must have, in hex. Another content is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[0-9a-f]{64}$")]
    pub sha256: Option<String>,
}

// === status ===

/// What the content is, once it is there.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ImageStatus {
    /// Its SHA-256 in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Bytes of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Bytes of the disk that a guest sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_size_bytes: Option<u64>,
    /// `qcow2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
}

impl Resource for Image {
    const META: Meta = Meta {
        kind: "image",
        plural: "images",
        prefix: "img",
        scope: Scope::Both,
        name: NameRule::Label,
        about: "The bytes that disks start as",
        actions: &[],
        fields: &[("format", Change::Immutable), ("sha256", Change::Immutable)],
        held: Held::Copy,
        private: &[],
    };
    type Spec = ImageSpec;
    type Status = ImageStatus;

    // === validate ===

    fn validate(object: &Object<Self>, _facts: &Facts, _creating: bool) -> Vec<FieldError> {
        let Some(sha256) = &object.spec.sha256 else { return Vec::new() };
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if sha256.len() == 64 && sha256.bytes().all(hex) {
            return Vec::new();
        }
        vec![FieldError::new("spec.sha256", "must be 64 hex digits in lower case, as sha256sum prints them")]
    }

    // === create, update, remove ===

    fn create(_object: &Object<Self>, _facts: &Facts) -> Plan {
        Plan::steps([Step::AwaitStatus {
            pointer: "/sha256".into(),
            deadline_seconds: UPLOAD_SECONDS,
            missing: "no content was uploaded: PUT it to the image's `content` and retry".into(),
        }])
    }

    fn update(_old: &Object<Self>, _new: &Object<Self>, _facts: &Facts) -> Plan {
        Plan::default()
    }

    fn remove(_object: &Object<Self>) -> Plan {
        Plan::steps([Step::Unassign { who: Who::This }, Step::AwaitGone { who: Who::This }, Step::Release])
    }

    // === order and observe ===

    fn order(object: &Object<Self>, _facts: &Facts) -> Option<Order> {
        wire::order(object)
    }

    // === settled ===

    fn settled(object: &Object<Self>) -> &'static str {
        if object.status.sha256.is_some() { "ready" } else { "pending" }
    }
}

// === wire ===

mod wire {
    use prost::Message as _;
    use rhyzome_proto::v1::{ImageOrder, OrderBody, order_body::Body};

    use super::*;

    /// `None` until the content is there: there is nothing to hold.
    pub fn order(object: &Object<Image>) -> Option<Order> {
        let status = &object.status;
        let body = ImageOrder {
            sha256: status.sha256.clone()?,
            size_bytes: status.size_bytes?,
            format: status.format.clone().unwrap_or_else(|| "qcow2".into()),
            virtual_size_bytes: status.virtual_size_bytes?,
        };
        let body = OrderBody { body: Some(Body::Image(body)) }.encode_to_vec();
        Some(Order { body, needs: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use rhyzome_proto::v1::{ImageOrder, OrderBody, order_body::Body};
    use serde_json::json;

    use super::*;
    use crate::resources::testing::{complaints, fields, object, stored_as};

    fn filled() -> Object<Image> {
        let status = json!({
            "sha256": "ab", "size_bytes": 10, "virtual_size_bytes": 20, "format": "qcow2",
        });
        stored_as(json!({}), json!({}), status)
    }

    #[test]
    fn a_digest_is_64_hex_digits() {
        for bad in ["", "ab", &"G".repeat(64), &"A".repeat(64)] {
            let said = complaints::<Image>(json!({"sha256": bad}), &Facts::default());
            assert_eq!(fields(&said), ["spec.sha256"], "{bad}");
        }
        assert_eq!(complaints::<Image>(json!({"sha256": "a".repeat(64)}), &Facts::default()), []);
    }

    #[test]
    fn waits_for_its_content() {
        let image = object::<Image>(json!({}));
        assert_eq!(Image::settled(&image), "pending");
        assert_eq!(Image::order(&image, &Facts::default()), None);
        let plan = Image::create(&image, &Facts::default());
        assert!(matches!(&plan.steps[..], [Step::AwaitStatus { pointer, .. }] if pointer == "/sha256"));
        assert_eq!(Image::settled(&filled()), "ready");
    }

    #[test]
    fn the_order_tells_digest_and_format() {
        let order = Image::order(&filled(), &Facts::default()).unwrap();
        let wanted = ImageOrder {
            sha256: "ab".into(),
            size_bytes: 10,
            format: "qcow2".into(),
            virtual_size_bytes: 20,
        };
        let body = OrderBody::decode(&order.body[..]).unwrap().body.unwrap();
        assert_eq!(body, Body::Image(wanted));
    }
}
