-- A batch that nobody is in is none. Where another claim had taken all of its mails over, or everybody had refused
-- since they were claimed, an empty batch stayed open for ever.
--
-- Forward only; one function is replaced, and no table of the application's is locked.

begin;
set local lock_timeout = '5s';

-- Seals a batch just before its first request: who gets it, what it says. Whoever has refused meanwhile, or has
-- another address, is left out; where nobody is left there is no batch. A repeated call gives the first one's answer.
-- p_mails: [{delivery_id, address, facts, digest}] in the order of the payload.
--   [delivery_id]: those that are in the batch
create or replace function public.mail_seal(
    p_claim uuid, p_batch_id uuid, p_kind text, p_mails jsonb, p_prices jsonb, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    held bigint[];
    unwanted jsonb;
begin
    perform public.mail_ledger_lock();
    if not exists (select from public.email_batches where batch_id = p_batch_id) then
        held := public.mail_hold(p_claim,
            array(select (m ->> 'delivery_id')::bigint from jsonb_array_elements(p_mails) m), 60);
        select jsonb_agg(jsonb_build_object('delivery_id', d.delivery_id, 'status', 'skipped', 'reason', t.reason))
        into unwanted
        from public.email_deliveries d
        left join lateral (select * from public.mail_people m where m.user_id = d.user_id offset 0) p on true
        cross join lateral (select public.mail_second_thoughts(d.kind, p, p_prices,
            coalesce(p_now, clock_timestamp())) as reason) t
        where d.delivery_id = any (held) and d.kind <> 'operator_digest' and t.reason is not null;
        if unwanted is not null then
            perform public.mail_write(p_claim, unwanted);
        end if;
        insert into public.email_batches (batch_id, kind) values (p_batch_id, p_kind);
        update public.email_deliveries d
        set status = 'sealed', batch_id = p_batch_id, position = m.position, address = m.mail ->> 'address',
            facts = m.mail -> 'facts', digest = m.mail ->> 'digest', sealed_at = clock_timestamp()
        from jsonb_array_elements(p_mails) with ordinality as m (mail, position)
        where d.delivery_id = (m.mail ->> 'delivery_id')::bigint and d.delivery_id = any (held)
            and d.status = 'planned' and m.mail ->> 'address' = case d.kind when 'operator_digest' then d.facts ->> 'to'
                else (select u.email from auth.users u where u.id = d.user_id) end;
        if not found then
            delete from public.email_batches where batch_id = p_batch_id;
        end if;
    end if;
    return (select coalesce(jsonb_agg(d.delivery_id order by d.position), '[]')
        from public.email_deliveries d where d.batch_id = p_batch_id and d.status = 'sealed');
end $$;

delete from public.email_batches b
where b.state = 'sealed' and not exists (select from public.email_deliveries d where d.batch_id = b.batch_id)
    and not exists (select from public.email_batches c where c.parent_id = b.batch_id);

commit;
