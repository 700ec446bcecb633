-- What imported rows carry beside their amount: contributions, income tax and what is left, as the application sums
-- them.

-- Keeps the rates that the code sent. An older version sends none: then the last ones stay.
-- Looks first: an insert that conflicts would lock the one row until its settlement ends.
create function jobs.take_rates(p_rates jsonb) returns void
language plpgsql set search_path = '' as $$
begin
    insert into jobs.rates_in_use as u (rates)
    select p_rates
    where jsonb_typeof(p_rates) = 'array' and not exists (select from jobs.rates_in_use k where k.rates = p_rates)
    on conflict (is_only) do update set rates = excluded.rates;
end $$;

-- Writes the estimates of a user's imported rows, of all months: rates and profile may have changed since. By the rates
-- of each row's month, to the cent. Without rates (before 2023, or none sent yet) what stands there stays.
-- Rows that already say so are not touched. Where one of the four columns is not as we left it, all four are the
-- user's; the amount stays ours.
-- The rule is urssaf::row_amounts, against which a test compares this. Call only under the user's lock.
create function jobs.write_estimates(p_user_id uuid) returns void
language plpgsql set search_path = '' as $$
begin
    with rates as materialized (
        select x.* from jobs.rates_in_use u cross join jsonb_to_recordset(u.rates) as x (
            activity text, "from" text, "full" numeric, acre_half numeric, acre_three_quarters numeric, flat_tax numeric)
    ), ours as materialized (
        select l.month, l.activity, l.record_id, r.amount_eur as amount,
            l.written_contrib_eur, l.written_net_eur, l.written_ir_mode, l.written_ir_eur
        from jobs.auto_sync_totals l join public.ca_records r on r.id = l.record_id and r.user_id = l.user_id
        where l.user_id = p_user_id and l.locked_at is null and r.source = 'auto_sync' and r.amount_eur = l.written_eur
            and (r.computed_contrib_eur, r.computed_net_eur, r.ir_mode, r.ir_amount_eur) is not distinct from
                (l.written_contrib_eur, l.written_net_eur, l.written_ir_mode, l.written_ir_eur)
    ), profile as materialized (
        select p.* from (select) one left join jobs.tax_profiles(array[p_user_id]) p on true
    ), shares as (
        select o.*,
            case when p.income_tax = 'versement_liberatoire' then 'vl' when p.income_tax = 'bareme' then 'bareme' end as mode,
            round(o.amount * 0.0001 * case
                -- ACRE: until the end of the third quarter after the one of the creation.
                when p.has_acre and date_trunc('month', p.created) <= o.month
                    and o.month < date_trunc('quarter', p.created) + interval '1 year'
                then case when p.created < '2026-07-01' then x.acre_half else x.acre_three_quarters end
                else x."full" end, 2) as contrib,
            case when p.income_tax = 'versement_liberatoire' then round(o.amount * 0.0001 * x.flat_tax, 2) end as tax
        from ours o cross join profile p
        cross join lateral (
            select t.* from rates t where t.activity = o.activity and t."from" <= to_char(o.month, 'YYYY-MM')
            order by t."from" desc limit 1) x
    ), wanted as materialized (
        select s.*, s.amount - s.contrib - coalesce(s.tax, 0) as net from shares s
        where (s.contrib, s.amount - s.contrib - coalesce(s.tax, 0), s.mode, s.tax) is distinct from
            (s.written_contrib_eur, s.written_net_eur, s.written_ir_mode, s.written_ir_eur)
    ), written as (
        update public.ca_records r
        set computed_contrib_eur = w.contrib, computed_net_eur = w.net, ir_mode = w.mode, ir_amount_eur = w.tax
        from wanted w
        where r.id = w.record_id and r.user_id = p_user_id and r.source = 'auto_sync'
            and r.amount_eur = w.amount                                          -- not edited in this very moment
            and (r.computed_contrib_eur, r.computed_net_eur, r.ir_mode, r.ir_amount_eur) is not distinct from
                (w.written_contrib_eur, w.written_net_eur, w.written_ir_mode, w.written_ir_eur)
        returning r.id
    )
    update jobs.auto_sync_totals l
    set written_contrib_eur = w.contrib, written_net_eur = w.net, written_ir_mode = w.mode, written_ir_eur = w.tax
    from wanted w join written n on n.id = w.record_id
    where l.user_id = p_user_id and l.month = w.month and l.activity = w.activity;
end $$;
