// SPDX-License-Identifier: LGPL-2.1-or-later
// What the journal calls a message, whatever its words are. systemd/chaind.catalog says of each
// what it means and what to do; a number is never used again for something else.
#pragma once

#define MESSAGE_ID_IMAGE_CORRUPT "f9442fd8c11c4f86a303175c63df8de8"
#define MESSAGE_ID_SYNC_FAILED "e6860dc9ae514baf9aebbd2b705f748f"
#define MESSAGE_ID_FILE_FAILED "6ebafa062f7f4b5abacd488a0b0436ba"
#define MESSAGE_ID_FILE_CHANGED "8705901c6bbf4105bd3d04ddf33b5cd7"
#define MESSAGE_ID_DISK_NOT_OPEN "59ba71b4849b4c6e89c91e5017562247"
#define MESSAGE_ID_JOB_FAILED "cf82b443c7184ce19dd74a081e268db8"
#define MESSAGE_ID_JOB_NO_SPACE "8e889c5388594da4874e75e2bf113b8b"
#define MESSAGE_ID_STOP_CUT_SHORT "f8c17069d75949aab1769016e8b443df"
#define MESSAGE_ID_NOT_FLUSHED "e20b9cb3ba9c48bf8b965c43ada94ef9"
