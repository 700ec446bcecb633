//! Makes a batch that may be sent out of a claim: a fresh one is rendered and sealed, one that an earlier claim sealed
//! is rendered again as it was.

use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{Batch, MailReport, Mailer, RenderedMail, unknown};
use crate::{
    deadline::Deadline,
    email::{
        Facts, Links, links,
        outbox::{Claimed, Outcome, Sealed, Status},
        render,
        sender::{self, KEY_REMEMBERED},
    },
    failure::Failure,
    supabase::SupabaseError,
};

impl Mailer {
    /// Resumes a batch that was sealed by an earlier claim, or begins one of fresh mails.
    pub(super) async fn work(
        &self,
        claim: Uuid,
        mails: Vec<Claimed>,
        reserved: usize,
        deadline: Deadline,
    ) -> Result<MailReport, SupabaseError> {
        match mails.first().and_then(|mail| mail.batch_id) {
            Some(batch) => self.resume(claim, batch, mails, &deadline).await,
            None => self.begin(claim, mails, reserved, &deadline).await,
        }
    }

    /// Sends a batch again that an earlier claim sealed, unless its key is too old; its request may have been accepted.
    async fn resume(
        &self,
        claim: Uuid,
        batch: Uuid,
        mails: Vec<Claimed>,
        deadline: &Deadline,
    ) -> Result<MailReport, SupabaseError> {
        let age = mails.iter().filter_map(|mail| mail.age_seconds).max().unwrap_or_default();
        let mut rendered = Vec::with_capacity(mails.len());
        let (mut matches_seal, mut attempts, mut lost) = (true, 0, Vec::new());
        for mail in &mails {
            attempts = attempts.max(mail.attempts);
            if let Ok(payload) = self.render_mail(mail) {
                matches_seal &= mail.digest.as_deref() == Some(digest(&payload).as_str());
                rendered.push(RenderedMail { delivery_id: mail.delivery_id, payload });
            } else {
                lost.push(unknown(mail.delivery_id));
            }
        }
        matches_seal &= lost.is_empty();
        let mut batch =
            Batch { id: batch, claim, mails: rendered, attempts, maybe_accepted: true, matches_seal };
        // The key is too old: another request could send a second mail.
        if age >= KEY_REMEMBERED.as_secs() {
            batch.mails = mails
                .iter()
                .map(|mail| RenderedMail { delivery_id: mail.delivery_id, payload: Value::Null })
                .collect();
            return self.settle(&batch, batch.all(unknown), deadline).await;
        }
        let mut report = MailReport::default();
        // A mail that cannot be rendered again is lost alone: the key tells whether the others have left.
        if !lost.is_empty() {
            report = self.settle(&batch, lost, deadline).await?;
        }
        if !batch.mails.is_empty() {
            report.add(self.deliver(batch, deadline).await?);
        }
        Ok(report)
    }

    /// Renders, seals and sends the mails that are still wanted, at most `reserved` of them.
    async fn begin(
        &self,
        claim: Uuid,
        mails: Vec<Claimed>,
        reserved: usize,
        deadline: &Deadline,
    ) -> Result<MailReport, SupabaseError> {
        let mut report = MailReport::default();
        let (mut settled, mut ready) = (Vec::new(), Vec::with_capacity(mails.len()));
        for mail in &mails {
            let outcome = if mail.expired {
                Outcome { reason: Some("expired".into()), ..Outcome::new(mail.delivery_id, Status::Expired) }
            } else if let Some(reason) = &mail.reason {
                Outcome { reason: Some(reason.clone()), ..Outcome::new(mail.delivery_id, Status::Skipped) }
            } else {
                match self.render_mail(mail) {
                    Ok(payload) => {
                        ready.push((mail, digest(&payload), payload));
                        continue;
                    }
                    Err(failure) => Outcome::because(mail.delivery_id, Status::Failed, &failure),
                }
            };
            settled.push(outcome);
        }
        if !settled.is_empty() {
            self.outbox.settle(claim, &settled, deadline).await?;
            report.count(&settled);
        }
        self.limits.quotas.put_back(reserved.saturating_sub(ready.len())).await;
        let Some(kind) = ready.first().map(|(mail, ..)| mail.kind) else { return Ok(report) };
        let beyond: Vec<i64> =
            ready.drain(reserved.min(ready.len())..).map(|(mail, ..)| mail.delivery_id).collect();
        if !beyond.is_empty() {
            self.outbox.give_back(claim, &beyond, Duration::ZERO, None, None, deadline).await?;
            report.given_back += beyond.len() as u64;
            report.blocked = self.limits.quotas.allowance().await.map(|allowance| allowance.exhausted());
        }
        if ready.is_empty() {
            return Ok(report);
        }

        let batch = Uuid::new_v4();
        let sealed: Vec<Sealed> = ready
            .iter()
            .map(|(mail, digest, _)| Sealed {
                delivery_id: mail.delivery_id,
                address: mail.address.as_deref().unwrap_or_default(),
                facts: &mail.facts,
                digest,
            })
            .collect();
        let members = self.outbox.seal(claim, batch, kind, &sealed, deadline).await?;
        self.limits.quotas.put_back(ready.len() - members.len().min(ready.len())).await;
        // Sealing settles the mails that are refused by now; those whose address has changed are claimed again with the new one.
        let left_out: Vec<i64> =
            ready.iter().map(|(mail, ..)| mail.delivery_id).filter(|id| !members.contains(id)).collect();
        if !left_out.is_empty() {
            self.outbox.give_back(claim, &left_out, Duration::ZERO, None, None, deadline).await?;
        }
        let attempts = ready.iter().map(|(mail, ..)| mail.attempts).max().unwrap_or_default();
        let rendered: Vec<RenderedMail> = ready
            .into_iter()
            .filter(|(mail, ..)| members.contains(&mail.delivery_id))
            .map(|(mail, _, payload)| RenderedMail { delivery_id: mail.delivery_id, payload })
            .collect();
        if !rendered.is_empty() {
            let batch = Batch {
                id: batch,
                claim,
                mails: rendered,
                attempts,
                maybe_accepted: false,
                matches_seal: true,
            };
            report.add(self.deliver(batch, deadline).await?);
        }
        Ok(report)
    }

    /// Renders a mail from its facts; the same facts give the same mail.
    fn render_mail(&self, mail: &Claimed) -> Result<Value, Failure> {
        let broken = |what: &str| {
            tracing::error!(
                delivery_id = mail.delivery_id,
                kind = mail.kind.as_str(),
                what,
                "a mail cannot be written"
            );
            Failure {
                code: "unwritable".into(),
                message: "Le courriel n’a pas pu être rédigé ; voir les journaux.".into(),
            }
        };
        let facts: Facts =
            serde_json::from_value(mail.facts.clone()).map_err(|error| broken(&error.to_string()))?;
        let address = mail.address.as_deref().ok_or_else(|| broken("no address"))?;
        let (jobs_url, keys) = (&self.config.jobs_url, &self.config.link_keys);
        let unsubscribe =
            mail.user_id.and_then(|user| links::unsubscribe(jobs_url, keys, user, facts.kind()));
        let confirm = mail
            .user_id
            .zip(facts.books_year())
            .map(|(user, year)| links::confirm(jobs_url, keys, user, year));
        let links = Links { unsubscribe: unsubscribe.as_deref(), confirm: confirm.as_deref() };
        let rendered = render(&facts, &self.branding, links).map_err(|error| broken(&error.to_string()))?;
        Ok(sender::compose(&self.config.from, address, &rendered, unsubscribe.as_deref()))
    }
}

fn digest(payload: &Value) -> String {
    hex::encode(Sha256::digest(payload.to_string()))
}
