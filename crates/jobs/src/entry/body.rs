//! Reading a request's body: never more than it may hold, never for longer than it may take.

use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use vercel_runtime::Error;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Reads the body's bytes; `None` where there are more than `most`, or they do not end in time.
pub(super) async fn read<B>(body: B, most: usize) -> Option<Vec<u8>>
where
    B: BodyExt,
    B::Error: Into<Error>,
{
    let body = tokio::time::timeout(TIMEOUT, Limited::new(body, most).collect());
    Some(body.await.ok()?.ok()?.to_bytes().to_vec())
}
