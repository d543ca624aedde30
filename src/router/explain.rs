//! Why a request takes the route that it takes, for `doorward explain`.
