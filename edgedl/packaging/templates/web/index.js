// Written by edgedl: __NAME__ __VERSION__.

import { Model } from "./model.js";

const files = {
__FILES__
};

export class __MODEL__ extends Model {
  static load(options) {
    return super.load(files, options);
  }

  async predict(__GIVEN__) {
    const _outputs = await this.run(__SAMPLES__);
    return __RESULT__;
  }
}
