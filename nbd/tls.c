// SPDX-License-Identifier: LGPL-2.1-or-later
// How clients may speak (NbdsTls), as a value with references. Any thread.
#include "nbd/server.h"

NbdsTls nbds_tls_copy(const NbdsTls *tls)
{
    if (!tls || tls->mode == NBDS_TLS_OFF)
        return (NbdsTls){0};
    return (NbdsTls){tls->mode, tls_creds_ref(tls->creds),
                     tls->authz ? tls_authz_ref(tls->authz) : NULL};
}

void nbds_tls_clear(NbdsTls *tls)
{
    tls_creds_unref(tls->creds);
    tls_authz_unref(tls->authz);
    *tls = (NbdsTls){0};
}
