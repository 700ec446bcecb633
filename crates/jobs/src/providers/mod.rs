//! Where turnover comes from: Stripe and Shopify, read as movements of money on the day they happened.
