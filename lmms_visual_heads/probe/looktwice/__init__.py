"""The real LookTwice-QA (Mani et al. 2020, arXiv 2011.13681): question files, Visual Genome images, a checked data folder.

`build_folder` makes a folder, `open_folder` gives its documents to the tasks when `VHEAD_DATA` names it. Nothing here was
tried on the published files themselves, which were not at hand; what is built on is this.

Known, with its source
----------------------
- The repository princetonvisualai/pointingqa has `Datasets/LookTwiceQA/looktwiceqa_dataset.json` and the image lists
  `looktwiceqa_{train,val,test}_imgs.json` (seen: JSON lists of Visual Genome ids as strings). There is no test-dev list.
- That data set is an object: image id -> list of records with `id`, `obj_type`, `obj_question`, `super_question`,
  `general_question`, `ans`, `point` {x, y, ans} and `bbox`, a Visual Genome object {x, y, w, h, names, ...} (the authors'
  `create_looktwice_initial.py`, and programs of others that read the file). `ans` is a digit as text; the point is the
  rounded middle of the box.
- Shikra's `pointQA_twice_{train,val}.jsonl` has one record a line: `file_path`, `obj_question`, `super_question`,
  `general_question`, `answer`, `bbox` and `point` in pixels (its `Point_QA_twice`); a relative of it has `genome_id`,
  `question`, `img_w`, `img_h`.
- ViP-LLaVA reads `pointQA_twice_test.json` (hub data set mucai/ViP-LLaVA-Instruct, 3.1 MB): a list with `id`
  ("pointQA_twice-..."), `image`, `bboxes` (left, top, right, bottom; one box), the three questions and `answer`, and makes
  the conversation from them. The study (jing-bi/visual-head) ran on this file, at commit c885fc2, with images in `vg/VG_100K`
  and `vg/VG_100K_2`.
- The study's four options: three other numbers drawn from 1..n and the answer, shuffled, one a line ("A. 4"), then "Answer
  with the option's letter from the given choices directly." Its later files `point_QA-{general,obj,super}.jsonl` have
  `question_id`, `image`, `question`, `bboxes`, `choice_a` .. `choice_d` and `gt` (a letter), one file a question type.
- A Visual Genome image lies at https://cs.stanford.edu/people/rak248/VG_100K_2/<id>.jpg or at .../VG_100K/<id>.jpg.

Assumed
-------
- n = 7: the study's comment lists 1 to 7, as does the data's own script; its settings files are not public.
- A list of four numbers is left, top, right, bottom in pixels of the original image, as all readers above use it.
- The pixel grid is the file's own, without its EXIF rotation, as those programs open it.
- Only the pointed object's box is published: `object_boxes` is missing unless a record brings `object_boxes`.

Different on purpose
--------------------
- The box of the visual tasks is opaque red around the object, like the one on the drawn scenes; the study blends it at half
  strength inside the box. The line is as thick as the study's: 3 pixels on 336.
- The study adds "The exemplary object is within the rectangle." to short questions, also where none is drawn; here the
  question stands alone.
"""

from lmms_visual_heads.probe.looktwice.build import build_folder
from lmms_visual_heads.probe.looktwice.folder import open_folder, read_image

__all__ = ["build_folder", "open_folder", "read_image"]
