//! `/api/v1/gateways/{gateway}/devices`: a gateway's devices as the chain has them; it asks for changes, and waits for them.

use std::sync::Arc;

use http::StatusCode;
use ledger::block::Height;
use record::ids::GatewayId;
use tokio::time::{Instant, timeout_at};

use super::{
    Context, answer,
    fault::Fault,
    route::{Answered, Request, Route},
};

/// What is served here. It is for everybody, as blocks are; a node that is not with the majority says nothing.
#[must_use]
pub fn routes() -> Vec<Route<Context>> {
    vec![
        Route::get("/api/v1/gateways/{gateway}/devices", |context, request| {
            Box::pin(roll(context, request))
        })
        .for_all(),
    ]
}

async fn roll(context: Arc<Context>, request: Request) -> Answered {
    let gateway: GatewayId = request
        .place()
        .parse()
        .map_err(|why| Fault::invalid(format!("not the name of a gateway: {why}")))?;
    let above = request.parameters.last("above").map(str::parse).transpose();
    let above = above.map_err(|_| Fault::invalid("above is a height, a whole number from 0"))?;
    let above = Height(above.unwrap_or_default());
    let deadline = Instant::now() + request.wait()?;
    let mut heads = context.chain.watch();
    loop {
        heads.mark_unchanged();
        let roll = context.chain.state().roll(&gateway, above);
        // Whoever waits until the end gets what there is: nothing new.
        if roll.through > above || timeout_at(deadline, heads.changed()).await.is_err() {
            return Ok(answer::json(StatusCode::OK, &roll));
        }
    }
}
