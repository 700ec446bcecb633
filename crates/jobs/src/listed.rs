//! Declares an enum and the list of its variants together, so that a new variant is in the list. Pure.

/// Declares an enum of plain variants, and `ALL` with every one of them in the order of the declaration.
macro_rules! listed {
    (
        $(#[$attribute:meta])*
        $visibility:vis enum $Name:ident {
            $($(#[$of_variant:meta])* $Variant:ident,)+
        }
    ) => {
        $(#[$attribute])*
        $visibility enum $Name {
            $($(#[$of_variant])* $Variant,)+
        }

        impl $Name {
            /// Lists every variant, in the order in which the enum declares them.
            pub const ALL: [Self; [$(Self::$Variant),+].len()] = [$(Self::$Variant),+];
        }
    };
}
