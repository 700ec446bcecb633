//! Work runs to its end whatever happens to its request.

use tokio::sync::oneshot;
use vercel_runtime::AppState;

use super::answer::Answer;

/// Runs the work where neither SIGTERM nor a client that hangs up cuts it; a panic becomes an opaque 500.
pub(super) async fn run_to_completion(
    state: &AppState,
    work: impl Future<Output = Answer> + Send + 'static,
) -> Answer {
    let (sender, receiver) = oneshot::channel();
    state.wait_until(async move {
        let answer = work.await;
        // Nobody listens any more where the client is gone: the work is done all the same.
        let _ = sender.send(answer);
    });
    receiver.await.unwrap_or_else(|_| Answer::error(500, "Erreur interne ; voir les journaux."))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use vercel_runtime::LogContext;

    use super::*;

    fn state() -> AppState {
        AppState::new(LogContext::new(None, None, None))
    }

    #[tokio::test]
    async fn a_panic_becomes_an_opaque_500() {
        let answer = run_to_completion(&state(), async { panic!("secret detail") }).await;
        assert_eq!(answer.status(), 500);
        assert_eq!(answer.body(), r#"{"error":"Erreur interne ; voir les journaux."}"#);
    }

    #[tokio::test]
    async fn work_goes_on_when_the_client_is_gone() {
        static DONE: AtomicBool = AtomicBool::new(false);
        let (begun, has_begun) = oneshot::channel();
        let (go, may_go) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let state = state();
        let client = tokio::spawn(async move {
            run_to_completion(&state, async move {
                begun.send(()).unwrap();
                may_go.await.unwrap();
                DONE.store(true, Ordering::SeqCst);
                end.send(()).unwrap();
                Answer::empty(200)
            })
            .await
        });
        has_begun.await.unwrap();
        client.abort();
        assert!(client.await.unwrap_err().is_cancelled());
        go.send(()).unwrap();
        ended.await.unwrap();
        assert!(DONE.load(Ordering::SeqCst));
    }
}
