"""``crnet audit``: a published result folder, gone through for somebody who does not trust it.

What can be derived again is derived and compared: tables, claims and page from the stored counts, the index of runs
from the runs' own reports, episodes from the data, data and encoder digests from the files, counts of a few episodes
from the weights. What is only recorded is held against every other record of the same thing.

What it cannot find: results that are wrong in a consistent way, where counts, digests and tables were made up together
and neither weights nor data are at hand. With weights and data the sample finds them, at random.
"""

from crnet.audit.audit import audit

__all__ = ["audit"]
