//! The enrolled gateways: who they are by name, and by the key of their connection.

use record::{canonical::Digest, ids::GatewayId};

use super::{Gateway, Register};

impl Register {
    /// An enrolled gateway, whoever operates it now: what it signed stands when its operator has left.
    #[must_use]
    pub fn gateway(&self, id: &GatewayId) -> Option<&Gateway> {
        self.gateways.get(id)
    }

    /// The enrolled gateway whose TLS key this is.
    #[must_use]
    pub fn gateway_with_tls(&self, tls: &Digest) -> Option<&Gateway> {
        self.gateways.values().find(|g| g.enrolment.tls == *tls)
    }
}
